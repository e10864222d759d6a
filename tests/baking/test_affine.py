"""Attention that scales and adds, v(x) x + b(x): both become constants, and both fold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from stripefold.baking.modules import ConstantScale, ConstantShift
from stripefold.baking.override_gates import override_gates
from stripefold.baking.rebuild import KEY, rebuild_, structure
from stripefold.errors import BakeError
from stripefold.stripe.discover import discover
from tests.baking.nets import C, Net, before_conv, before_sum, tokens
from tests.lifecycle import EXACT, error, images, prepared


class Affine(nn.Module):
    """One layer gives both, as in Leela Chess Zero's networks."""

    def __init__(self, way: str = "plain") -> None:
        super().__init__()
        self.fc1, self.fc2, self.way = nn.Linear(C, 4), nn.Linear(4, 2 * C), way

    def forward(self, x: Tensor) -> Tensor:
        g, b = self.fc2(F.relu(self.fc1(x.mean((2, 3)))))[:, :, None, None].chunk(2, 1)
        if self.way == "sum first":
            return b + torch.sigmoid(g) * x
        if self.way == "in place":
            return (x * torch.sigmoid(g)).add_(b)
        if self.way == "one plus":
            return x * (1 + torch.tanh(g)) + b
        return x * torch.sigmoid(g) + b


class Branches(nn.Module):
    """A global context block: a branch that scales, one that adds, both of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.scale = nn.Sequential(nn.Conv2d(C, 4, 1), nn.ReLU(), nn.Conv2d(4, C, 1), nn.Sigmoid())
        self.shift = nn.Sequential(nn.Conv2d(C, 4, 1), nn.ReLU(), nn.Conv2d(4, C, 1))

    def forward(self, x: Tensor) -> Tensor:
        context = self.pool(x)
        return x * self.scale(context) + self.shift(context)


class TokenAffine(nn.Module):
    """On tokens (N, L, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(C, 2 * C)

    def forward(self, x: Tensor) -> Tensor:
        g, b = self.fc(x.mean(1, keepdim=True)).chunk(2, -1)
        return x * torch.sigmoid(g) + b


FORMS: dict[str, tuple[Callable[[Net, Tensor], Tensor], Callable[[], nn.Module]]] = {
    "one layer": (before_conv, Affine),
    "sum first": (before_conv, lambda: Affine("sum first")),
    "in place": (before_conv, lambda: Affine("in place")),
    "one plus": (before_conv, lambda: Affine("one plus")),
    "two branches": (before_conv, Branches),
    "behind a layer": (before_sum, Affine),
    "tokens": (tokens, TokenAffine),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    body, gate = FORMS[name]
    model = Net(body, se=gate(), **({"norm": nn.LayerNorm(C), "mix": nn.Linear(C, C)} if name == "tokens" else {}))
    prepared(model.double(), images(8, seed=3)).eval()
    with torch.no_grad():
        for parameter in model.se.parameters():  # type: ignore[union-attr]
            parameter.mul_(4)
    return model, images(8, seed=4)


@pytest.mark.parametrize("name", FORMS)
def test_scale_and_shift_become_constants_and_fold(name: str) -> None:
    model, x = made(name)
    (gate,) = discover(model, x).gates
    assert gate.affine
    assert gate.whole
    assert discover(model, x).others == ()
    baked, report = sf.bake(model, [x], example=x, recalibrate=False)
    (site,) = report.sites
    assert site.outcome == "folded"
    assert "what it adds stays, one addition per channel" in site.why
    assert isinstance(baked.se, ConstantShift)
    assert discover(baked, x).gates == ()
    inside: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule("se").register_forward_hook(lambda m, args, y: inside.append((args[0].clone(), y)))
    with torch.no_grad():
        dynamic = model(x)
    handle.remove()
    axis = gate.axis
    (layer,) = sf.observe(model, x).layers
    given, got = (t.transpose(0, axis).flatten(1).mean(1) for t in inside[0])
    b = got - layer.mean * given  # the constant that belongs to v
    shape = (-1, *(1,) * (inside[0][0].dim() - 1 - axis))
    stand_in = ByHand(layer.mean.reshape(shape), b.reshape(shape))
    model.se, attention = stand_in, model.se
    with torch.no_grad():
        expected = model(x)
    model.se = attention
    with torch.no_grad():
        assert error(baked(x), expected) < EXACT
        assert error(baked(x), dynamic) > 1e-5
    if name != "tokens":
        plain = sf.fold(baked, fuse=True, example=x)
        assert not any(isinstance(module, (ConstantScale, ConstantShift)) for module in plain.modules())
        with torch.no_grad():
            assert error(plain(x), expected) < EXACT


class ByHand(nn.Module):
    def __init__(self, v: Tensor, b: Tensor) -> None:
        super().__init__()
        self.v, self.b = v, b

    def forward(self, x: Tensor) -> Tensor:
        return x * self.v + self.b


def test_where_nothing_takes_the_scale_both_stay() -> None:
    torch.manual_seed(0)
    model = prepared(Net(lambda net, x: net.se(F.silu(net.conv(x))) + x, se=Affine()).double(), images(8)).eval()
    x = images(8, seed=4)
    baked, report = sf.bake(model, [x], example=x, recalibrate=False)
    assert [site.outcome for site in report.sites] == ["multiply"]
    assert [type(part) for part in baked.se] == [ConstantScale, ConstantShift]  # type: ignore[arg-type]


class Other(nn.Module):
    """A product and a summand that is no constant per channel."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc, self.conv, self.kind = nn.Linear(C, C), nn.Conv2d(C, C, 1), kind
        self.bias = nn.Parameter(torch.randn(C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.sigmoid(self.fc(x.mean((2, 3))))[:, :, None, None]
        if self.kind == "map":
            return y + self.conv(x)
        if self.kind == "positions":
            return y + x.mean(1, keepdim=True)
        if self.kind == "learned":
            return y + self.bias
        if self.kind == "twice":
            return y + x.mean((2, 3), keepdim=True) * 2 - y.mean()
        return torch.add(y, x.mean((2, 3), keepdim=True), alpha=2)


@pytest.mark.parametrize("kind", ["map", "positions", "learned", "twice", "alpha"])
def test_other_sums_are_no_affine_gates(kind: str) -> None:
    torch.manual_seed(0)
    model = Net(before_conv, se=Other(kind)).double().eval()
    (gate,) = discover(model, images(8)).gates
    assert not gate.affine
    assert not gate.whole


def test_constants_of_every_kind_and_a_budget() -> None:
    model, x = made("one layer")
    for kind in ("mean", "energy", "descriptor"):
        _, report = sf.bake(model, [x], constants=kind, recalibrate=False)  # type: ignore[arg-type]
        assert report.sites[0].outcome == "folded"

    def near(other: nn.Module) -> float:
        with torch.no_grad():
            return -float((other(x) - model(x)).square().mean())

    _, report = sf.bake(model, [x], metric=near, max_drop=1e6)
    assert report.after == pytest.approx(report.constant)
    assert report.sites[0].alone is not None
    kept, report = sf.bake(model, [x], metric=near, max_drop=0)
    assert report.sites[0].outcome == "dynamic"
    with torch.no_grad():
        assert torch.equal(kept(x), model(x))


def test_without_its_summand_the_constants_are_worse() -> None:
    """A control of the whole: the summand is needed."""
    model, x = made("one layer")
    discovery = discover(model, x)
    (layer,) = sf.observe(model, x).layers
    baked, _ = sf.bake(model, [x], recalibrate=False)
    with torch.no_grad(), override_gates(model, discovery.gates, {layer.name: layer.mean}):
        without = model(x)
    with torch.no_grad():
        assert error(without, model(x)) > 3 * error(baked(x), model(x))


def test_it_settles() -> None:
    model, x = made("one layer")
    model = model.float()
    data = [(x.float(), torch.arange(8) % 4)]
    baked, report = sf.bake(model, data, settle=sf.Settle(steps=4, way="ramp"))
    assert report.after == pytest.approx(report.settled)
    assert isinstance(baked.se, ConstantShift)


def test_no_trainable_gate_takes_its_place() -> None:
    model, x = made("one layer")
    with pytest.raises(BakeError, match="for which there is no trainable gate"):
        sf.bake(model, [x], to="asr")


def test_a_constant_of_zero_cannot_go_forward() -> None:
    from stripefold.baking.sites import plan_bake

    model, x = made("one layer")
    discovery = discover(model, x)
    v = torch.ones(C, dtype=torch.float64)
    assert plan_bake(model, discovery, constants={"se": v})[0].how == "forward"
    v[2] = 0
    (site,) = plan_bake(model, discovery, constants={"se": v})
    assert site.how == "multiply"
    assert "a constant is 0" in site.why


def test_the_file_of_a_baked_model_loads_again(tmp_path: Path) -> None:
    model, x = made("one layer")
    baked, report = sf.bake(model, [x], example=x, recalibrate=False)
    sf.save_model(baked, tmp_path / "baked.safetensors", kind="baked", extra={KEY: structure(report)})
    again = rebuild_(made("one layer")[0], structure(report), example=x)
    sf.load_model_(again, tmp_path / "baked.safetensors")
    with torch.no_grad():
        assert torch.equal(again(x), baked(x))


def test_in_a_graph_the_summand_stays_dynamic() -> None:
    model, x = made("two branches")
    graph = torch.fx.symbolic_trace(model)
    baked, report = sf.bake(graph, [x], example=x, recalibrate=False)
    assert [site.outcome for site in report.sites] == ["multiply"]
    (other,) = discover(baked, x).others
    assert "additive gate" in other.why
