"""Decisions on networks of users' own, each carried out and compared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.baking.apply import apply_, verify_baked
from stripefold.baking.modules import ConstantGate, ConstantScale
from stripefold.baking.override_gates import can_hold, override_gates
from stripefold.baking.sites import plan_bake
from stripefold.errors import BakeError
from stripefold.stripe.discover import discover
from tests.baking import nets
from tests.baking.exact import assert_exact, bake_exactly, constants_for, prepare
from tests.baking.nets import SE, C, GateOnly, InPlace, Net, TokenSE
from tests.lifecycle import error

TOKEN_PARTS = {"se": TokenSE, "mix": lambda: nn.Linear(C, C), "norm": lambda: nn.LayerNorm(C)}
CASES = {
    "before a convolution": (nets.before_conv, {"se": SE}, "forward", "forward into conv"),
    "before a sum": (nets.before_sum, {"se": SE}, "backward", "backward into conv"),
    "in place": (nets.before_sum, {"se": InPlace}, "backward", "backward into conv"),
    "behind a ReLU": (nets.behind_relu, {"se": SE}, "backward", r"backward into conv \(v >= 0\)"),
    "nowhere": (nets.nowhere, {"se": SE}, "multiply", "backward: 'silu' in the model itself.*forward: 'add'"),
    "in the block's own forward": (nets.own_product, {"gate": GateOnly}, "multiply", "the forward of 'the model'"),
    "before a norm": (nets.before_norm, {"se": SE, "norm": lambda: nn.BatchNorm2d(C)}, "forward", "in evaluation mode"),
    "on tokens": (nets.tokens, TOKEN_PARTS, "backward", "backward into norm"),
    "concatenated": (nets.joined, {"se": SE, "wide": lambda: nn.Conv2d(2 * C, C, 1)}, "forward", "forward into wide"),
}


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def net(body: object, parts: dict[str, type[nn.Module]]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return prepare(Net(body, **{name: part() for name, part in parts.items()}), images())


@pytest.mark.parametrize("case", CASES)
def test_decisions(case: str) -> None:
    body, parts, how, why = CASES[case]
    model, x = net(body, parts)
    outcome = bake_exactly(model, x)
    assert outcome.how() == [how]
    with pytest.raises(ValueError, match=why):
        raise ValueError(outcome.sites[0].why)
    assert_exact(outcome)


def test_negative_constants_behind_a_relu_are_multiplied() -> None:
    model, x = net(nets.behind_relu, {"se": SE})
    discovery = discover(model, x)
    v = constants_for(plan_bake(model, discovery), signed=False)
    minus = {"se": v["se"] * torch.tensor([1.0, -1, 1, -1, 1, 1], dtype=torch.float64)}
    assert plan_bake(model, discovery, constants=v)[0].how == "backward"
    (site,) = plan_bake(model, discovery, constants=minus)
    assert (site.how, site.layers) == ("multiply", ())
    assert "2 constants are negative" in site.why
    # A plan made without constants is made good when they are known.
    baked, (final,) = apply_(copy.deepcopy(model), plan_bake(model, discovery), minus)
    assert final.how == "multiply"
    assert type(baked.se) is ConstantScale
    assert verify_baked(model, discovery.gates, baked, minus, x).passed


def test_a_constant_scale_is_a_layer_like_others() -> None:
    model, x = net(nets.nowhere, {"se": SE})
    outcome = bake_exactly(model, x)
    scale = outcome.baked.se
    assert type(scale) is ConstantScale
    assert torch.equal(scale.weight, outcome.constants["se"])
    assert "6, axis=1" in repr(scale)
    attached = sf.attach(outcome.baked, "se", where="se", example=x)
    sf.verify(attached, sf.fold(attached, example=x), x)
    assert set(outcome.baked.state_dict()) - set(model.state_dict()) == {"se.weight"}


def test_a_gate_that_a_module_returns_becomes_a_constant_one() -> None:
    model, x = net(nets.own_product, {"gate": GateOnly})
    outcome = bake_exactly(model, x)
    gate = outcome.baked.gate
    assert type(gate) is ConstantGate
    assert gate(x[:1]).shape == (1, C, 1, 1)
    assert not [key for key in outcome.baked.state_dict() if key.startswith("gate.fc")]
    with torch.no_grad():
        assert outcome.baked(torch.cat([x, x, x]))[:2].allclose(outcome.baked(x))  # any number of samples
    with pytest.raises(BakeError, match="without a tensor"):
        gate(3)


def test_gates_in_a_row_are_planned_together() -> None:
    model, x = net(nets.in_a_row, {"se": SE, "second": SE})
    both = bake_exactly(model, x)
    assert both.how() == ["backward", "backward"]
    assert [site.layers for site in both.sites] == [("conv",), ("conv",)]
    assert_exact(both)
    # The first gate reads what the second one's constant would pass: alone it cannot go there.
    second = bake_exactly(model, x, names=["second"])
    assert second.how() == ["multiply"]
    assert "used unscaled, too, by 'mean' in 'se'" in second.sites[0].why
    assert_exact(second)
    first = bake_exactly(model, x, names=["se"])
    assert first.how() == ["backward"]
    assert_exact(first)


def test_a_gate_called_twice_stays() -> None:
    model, x = net(nets.twice, {"se": SE})
    outcome = bake_exactly(model, x)
    assert outcome.how() == ["keep", "keep"]
    assert "'se' is called 2 times" in outcome.sites[0].why
    assert outcome.against_dynamic == 0


def test_a_gate_that_nothing_returns_stays() -> None:
    model, x = net(nets.functional, {"fc": lambda: nn.Linear(C, C)})
    discovery = discover(model, x)
    (site,) = plan_bake(model, discovery)
    assert site.how == "keep"
    assert "no module returns the gate" in site.why
    assert "move that computation into a module of its own" in site.why
    assert not can_hold(site.gate)
    with (
        pytest.raises(BakeError, match="no module returns the gate"),
        override_gates(model, discovery.gates, {site.name: torch.ones(C)}),
    ):
        pass


def test_one_gate_for_two_products_stays() -> None:
    model, x = net(nets.two_products, {"gate": GateOnly})
    outcome = bake_exactly(model, x)
    assert outcome.how() == ["keep", "keep"]
    assert "'gate' gives the gate of 2 products" in outcome.sites[0].why


class Root(SE):
    pass


def test_a_model_that_is_the_attention_stays() -> None:
    model = Root(3).double().eval()
    (site,) = plan_bake(model, discover(model, images()))
    assert site.how == "keep"
    assert "the model itself is the attention" in site.why


class Wrapper(nn.Module):
    """Returns its tensors in a container that no trace looks into."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> object:
        y = self.model(x)
        return lambda: y


def test_outputs_in_a_container_are_seen_because_they_are_kept() -> None:
    model, x = net(nets.before_conv, {"se": SE})
    wrapped = Wrapper(model)
    (site,) = plan_bake(wrapped, discover(wrapped, x))
    assert site.how == "forward"


@pytest.mark.parametrize("attention", ["se", "eca", "srm", "gct"])
def test_dynamic_attention_of_our_own_leaves_its_site(attention: str) -> None:
    bare, x = net(lambda net, x: net.conv(x) + x, {})
    model = sf.attach(bare, attention, where=["conv"], form="dynamic")
    prepare(model, images())
    outcome = bake_exactly(model, x)
    assert outcome.how() == ["backward"]
    assert outcome.sites[0].layers == ("conv.base",)
    assert_exact(outcome)
    assert type(outcome.baked.conv) is nn.Conv2d
    assert list(outcome.baked.state_dict()) == list(bare.state_dict())


def test_static_gates_beside_it_are_folded_first() -> None:
    bare, x = net(lambda net, x: net.conv(x) + x, {})
    model = sf.attach(sf.attach(bare, "se", where=["conv"]), "se", where=["conv"], form="dynamic")
    prepare(model, images())
    (site,) = plan_bake(model, discover(model, x))
    assert site.how == "keep"
    assert "static gates stand on 'conv', too: fold them first" in site.why
    folded = bake_exactly(sf.fold(model, example=x), x)
    assert_exact(folded)
    assert list(folded.baked.state_dict()) == list(bare.state_dict())


def activated() -> nn.Module:
    from timm.layers import BatchNormAct2d

    return BatchNormAct2d(C, act_layer=nn.SiLU)


def test_our_attention_behind_an_activation_becomes_a_multiplication() -> None:
    bare, x = net(lambda net, x: net.act(net.conv(x)) + x, {"act": activated})
    model = sf.attach(bare, "se", where=["act"], form="dynamic")
    prepare(model, images())
    outcome = bake_exactly(model, x)
    assert outcome.how() == ["multiply"]
    assert_exact(outcome)
    assert type(outcome.baked.act.scale) is ConstantScale


def test_hooks_and_flags_of_the_attention_stay_in_its_place() -> None:
    model, x = net(nets.before_conv, {"se": SE})
    seen: list[tuple[int, ...]] = []
    handle = model.se.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    model.se.train()
    discovery = discover(model, x)
    sites = plan_bake(model, discovery)
    baked, _ = apply_(model, sites, constants_for(sites))
    assert type(baked.se) is nn.Identity
    assert baked.se.training
    seen.clear()
    baked(x)
    assert seen == [(2, C, 8, 8)]
    handle.remove()
    assert not baked.se._forward_hooks


def test_hooks_leave_nothing_behind_and_gradients_reach_the_constants() -> None:
    model, x = net(nets.before_conv, {"se": InPlace})
    discovery = discover(model, x)
    v = {"se": torch.full((C,), 0.7, requires_grad=True)}
    with torch.no_grad():
        before = model(x)
    with override_gates(model, discovery.gates, v):
        model(x).square().mean().backward()
        assert v["se"].grad is not None
        assert bool((v["se"].grad != 0).all())
        first, second = model(x), model(x)
        assert torch.equal(first, second)
    with torch.no_grad():
        assert error(first, before) > 1e-3
        assert torch.equal(model(x), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError, match="stop"), override_gates(model, discovery.gates, v):
        raise RuntimeError("stop")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_two_calls_of_one_gate_are_held_one_by_one() -> None:
    model, x = net(nets.twice, {"se": SE})
    discovery = discover(model, x)
    names = [gate.name for gate in discovery.gates]
    assert names == ["se", "se#2"]

    def held(**v: Tensor) -> Tensor:
        with torch.no_grad(), override_gates(model, discovery.gates, v):
            return model(x)

    ones = torch.ones(C)
    both = held(**{"se": ones, "se#2": ones})
    with torch.no_grad():
        assert error(both, model.out(nn.functional.silu(model.conv(model.bn(model.stem(x)))).mean((2, 3)))) < 1e-12
    assert error(held(se=ones), both) > 1e-3
    assert error(held(**{"se#2": ones}), held(se=ones)) > 1e-3
