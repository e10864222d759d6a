"""Constants weighted by the energy of what they scale, and the channels that move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from stripefold.stripe.layer import LayerStripes
from tests.baking.nets import SE, C, GateOnly, InPlace, Net, TokenSE, before_conv, own_product, tokens
from tests.lifecycle import images, prepared


def data() -> list[Tensor]:
    """Batches of unlike sizes, whose images have unlike contrast."""
    scale = torch.linspace(0.2, 3, 16, dtype=torch.float64)[:, None, None, None]
    return list(torch.split(images(16, seed=5) * scale, [10, 6]))


def made(body: Callable[[Net, Tensor], Tensor], **modules: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    return prepared(Net(body, **modules).double(), images(8, seed=30)).eval()


def inputs_of(module: nn.Module, model: nn.Module) -> Tensor:
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0].clone()))
    with torch.no_grad():
        for x in data():
            model(x)
    handle.remove()
    return torch.cat(found)


def expected(x: Tensor, v: Tensor, axis: int = 1) -> Tensor:
    x, v = x.transpose(1, axis).flatten(2), v.transpose(1, axis).flatten(1)
    return (v[:, :, None] * x.square()).sum((0, 2)) / x.square().sum((0, 2))


def constants(report: sf.BakeReport, model: nn.Module, kind: str) -> Tensor:
    """What was folded, read off the one layer that took it."""
    baked, _ = sf.bake(model, data(), constants=kind, recalibrate=False)
    before, after = model.conv.weight, baked.conv.weight
    return (after / before).mean((0, 2, 3))


@pytest.mark.parametrize("attention", [SE, InPlace])
@pytest.mark.parametrize("kind", ["energy", "least-squares"])
def test_of_an_attention_module(attention: type[SE], kind: str) -> None:
    model = made(before_conv, se=attention())
    x = inputs_of(model.se, model)
    with torch.no_grad():
        v = torch.sigmoid(model.se.fc2(F.relu(model.se.fc1(x.mean((2, 3))))))
    baked, report = sf.bake(model, data(), constants=kind, recalibrate=False)
    assert report.constants == kind
    found = (baked.conv.weight / model.conv.weight).mean((0, 2, 3))
    assert torch.allclose(found, expected(x, v), rtol=1e-10)
    assert not torch.allclose(found, v.mean(0), rtol=1e-4)  # the control


def test_of_a_product_in_the_forward() -> None:
    model = made(own_product, gate=GateOnly())
    x = F.silu(inputs_of(model.gate, model))
    with torch.no_grad():
        v = model.gate(inputs_of(model.gate, model))
    baked, _ = sf.bake(model, data(), constants="energy", recalibrate=False)
    assert torch.allclose(baked.gate.weight.flatten(), expected(x, v.flatten(1)), rtol=1e-10)
    mean, _ = sf.bake(model, data(), recalibrate=False)
    assert torch.allclose(mean.gate.weight.flatten(), v.flatten(1).mean(0), rtol=1e-10)


def test_of_tokens_and_of_a_graph() -> None:
    model = made(tokens, se=TokenSE(), norm=nn.LayerNorm(C), mix=nn.Linear(C, C))
    x = inputs_of(model.se, model)
    with torch.no_grad():
        v = model.se.act(model.se.fc(x.mean(1, keepdim=True))).flatten(1)
    baked, _ = sf.bake(model, data(), constants="energy", recalibrate=False)
    found = baked.norm.weight / model.norm.weight
    wanted = (v[:, None] * x.square()).sum((0, 1)) / x.square().sum((0, 1))
    if torch.allclose(found, torch.ones_like(found)):
        found = (baked.mix.weight / model.mix.weight).mean(0)
    assert torch.allclose(found, wanted, rtol=1e-9)
    net = made(before_conv, se=SE())
    eager, _ = sf.bake(net, data(), constants="energy", recalibrate=False)
    graph, _ = sf.bake(torch.fx.symbolic_trace(net), data(), constants="energy", recalibrate=False)
    assert torch.allclose(graph.conv.weight, eager.conv.weight, rtol=1e-10)


def test_its_squared_error_is_the_least() -> None:
    model = made(before_conv, se=SE())
    x = inputs_of(model.se, model)
    with torch.no_grad():
        y = model.se(x)
        errors = {
            kind: float((y - x * constants(None, model, kind)[:, None, None]).square().sum())
            for kind in ("mean", "energy", "descriptor")
        }
    assert errors["energy"] < min(errors["mean"], errors["descriptor"])


def test_a_silent_channel_gets_the_mean() -> None:
    net = made(before_conv, se=nn.Sequential(nn.Conv2d(C, C, 1, bias=False), SE()))
    with torch.no_grad():
        net.se[0].weight[0] = 0
    baked, _ = sf.bake(net, data(), constants="energy", recalibrate=False)
    assert all(bool(p.isfinite().all()) for p in baked.parameters())


def layer(deviations: list[float]) -> LayerStripes:
    variance = torch.tensor(deviations, dtype=torch.float64).square()
    count = len(deviations)
    return LayerStripes(
        name="se", kind="SE", depth=0.5, channels=count, images=10, mean=torch.full((count,), 0.5).double(),
        m2=10 * variance, sample=torch.zeros(0, count),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("deviations", "moving", "largest"),
    [([0.1] * 8, 8.0, 0.125), ([0.3] + [0.0] * 7, 1.0, 1.0), ([0.0] * 8, 0.0, 0.0), ([0.2, 0.2, 0, 0], 2.0, 0.5)],
)
def test_channels_that_move(deviations: list[float], moving: float, largest: float) -> None:
    found = layer(deviations)
    assert found.moving_channels == pytest.approx(moving)
    assert found.largest_share == pytest.approx(largest)


class FewMove(SE):
    """Only one of many channels answers to the image."""

    def __init__(self) -> None:
        super().__init__(32)

    def forward(self, x: Tensor) -> Tensor:
        moves = (torch.arange(32) == 3).to(x.dtype)
        return x * torch.sigmoid(x.mean((2, 3)) * moves)[:, :, None, None]


def test_a_report_names_gates_in_which_few_channels_move() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), FewMove(), nn.Conv2d(32, 4, 1)).double().eval()
    _, report = sf.bake(model, data())
    assert report.sites[0].moving_channels == pytest.approx(1)
    assert report.sites[0].largest_share == pytest.approx(1)
    assert "few channels move (effective number, share of the largest): 1 (1.0 of 32, 100%)" in str(report)
    _, other = sf.bake(made(before_conv, se=SE()), data())
    assert "few channels move" not in str(other)
