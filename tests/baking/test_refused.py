"""What baking refuses, in words; the model is then as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from stripefold.baking.apply import apply_
from stripefold.baking.constants import constants_of
from stripefold.baking.override_gates import override_gates
from stripefold.baking.sites import plan_bake
from stripefold.errors import BakeError
from stripefold.graph.absorption import Absorption
from stripefold.layers.absorb import absorb
from stripefold.layers.accepts import Acceptance
from stripefold.modules.float64_weights import Float64Weights
from stripefold.stripe.discover import discover
from tests.baking import nets
from tests.baking.nets import SE, C, GateOnly
from tests.baking.test_sites import net
from tests.lifecycle import assert_refused

ONES = torch.ones(C, dtype=torch.float64)


def before_conv() -> tuple[nn.Module, Tensor]:
    return net(nets.before_conv, {"se": SE})


BAD_CONSTANTS = {
    "missing": ({}, "no constant was given for the gate 'se'"),
    "short": ({"se": ONES[:3]}, r"has shape \(3,\), expected \(6,\)"),
    "not finite": ({"se": ONES * float("nan")}, "not finite in 6 of 6 channels"),
}


@pytest.mark.parametrize("case", BAD_CONSTANTS)
def test_constants_that_do_not_fit(case: str) -> None:
    model, x = before_conv()
    discovery = discover(model, x)
    constants, match = BAD_CONSTANTS[case]
    sites = plan_bake(model, discovery)
    assert_refused(model, lambda: plan_bake(model, discovery, constants=constants), BakeError, match)
    assert_refused(model, lambda: apply_(model, sites, constants), BakeError, match)


def test_an_unknown_gate() -> None:
    model, x = before_conv()
    discovery = discover(model, x)
    with pytest.raises(BakeError, match="no channel gate is called 'conv': the model has 'se'"):
        plan_bake(model, discovery, ["conv"])
    with (
        pytest.raises(BakeError, match="no channel gate is called 'conv'"),
        override_gates(model, discovery.gates, {"conv": ONES}),
    ):
        pass
    with (
        pytest.raises(BakeError, match=r"has shape \(2,\), expected \(6,\)"),
        override_gates(model, discovery.gates, {"se": ONES[:2]}),
    ):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_wrapped_model() -> None:
    model, x = before_conv()
    sites = plan_bake(model, discover(model, x))
    with pytest.raises(BakeError, match="wrapped in DataParallel: give the bare model"):
        apply_(nn.DataParallel(model), sites, {"se": ONES})


def test_a_product_that_overflows_leaves_the_model_as_it_was() -> None:
    model, x = before_conv()
    sites = plan_bake(model, discover(model, x))
    half = copy.deepcopy(model).half()
    assert_refused(
        half,
        lambda: apply_(half, sites, {"se": ONES * 1e7}),
        BakeError,
        "into 'conv': its weight overflows torch.float16",
    )


def test_a_gate_that_changes_its_form() -> None:
    model, x = net(nets.own_product, {"gate": GateOnly})
    discovery = discover(model, x)
    model.gate.pool = nn.AdaptiveAvgPool2d(2)
    held = override_gates(model, discovery.gates, {discovery.gates[0].name: ONES})
    with pytest.raises(BakeError, match="'gate.act' returned .*not one gate of 6"), torch.no_grad(), held:
        model(x)


def test_a_map_without_the_channels() -> None:
    model, x = before_conv()
    discovery = discover(model, x)
    held = override_gates(model, discovery.gates, {"se": ONES})
    with pytest.raises(BakeError, match="has no 6 channels on axis 1"), torch.no_grad(), held:
        model.se(torch.randn(2, 5, 4, 4, dtype=torch.float64))


def test_an_unknown_kind_of_constants() -> None:
    model, x = before_conv()
    with pytest.raises(BakeError, match="constants='median': expected 'mean' or 'descriptor'"):
        constants_of(model, discover(model, x), (), "median")  # type: ignore[arg-type]


# The layers' own reasons.


def reason(layer: nn.Module, side: str) -> str:
    model = nn.Sequential(nn.Conv2d(3, C, 1), layer)
    found = Acceptance(model)("1", side)  # type: ignore[arg-type]
    assert isinstance(found, str), found
    return found


def expanded() -> nn.Module:
    norm = nn.BatchNorm2d(C)
    norm.weight = nn.Parameter(torch.ones(1).expand(C))
    return norm


def inference() -> nn.Module:
    with torch.inference_mode():
        return nn.Conv2d(C, C, 1)


def reparametrized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(C, C, 1))


LAYERS = {
    "not affine": (lambda: nn.BatchNorm2d(C, affine=False), "it has no affine part", "has no bias|no affine part"),
    "without input side": (lambda: nn.LayerNorm(C), None, "LayerNorm has no input side"),
    "expanded": (expanded, "one number for many channels", "one number for many channels"),
    "inference": (inference, "read-only", "read-only"),
    "meta": (lambda: nn.Conv2d(C, C, 1, device="meta"), "on the meta device", "on the meta device"),
    "parametrized": (reparametrized, "it is parametrized", "it is parametrized"),
    "batch statistics": (
        lambda: nn.BatchNorm2d(C, track_running_stats=False), None, "without running statistics",
    ),
    "no rule": (lambda: nn.PReLU(C), "no rule", "no rule"),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_layers_that_take_no_scale(case: str) -> None:
    build, output, before = LAYERS[case]
    for side, match in (("output", output), ("input", before)):
        if match is not None:
            with pytest.raises(ValueError, match=match):
                raise ValueError(reason(build(), side))


def test_a_batch_norm_takes_a_scale_of_its_input_in_evaluation_only() -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C))
    assert not isinstance(Acceptance(model)("1", "input"), str)
    assert (
        Acceptance(model, training=True)("1", "input") == "in training its batch statistics undo a scale of its input"
    )
    assert not isinstance(Acceptance(model, training=True)("1", "output"), str)


def test_a_site_takes_none() -> None:
    import stripefold as sf

    model = sf.attach(nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C)), "se", where=["1"])
    assert Acceptance(model)("1", "output") == "it carries gates of its own"


def test_several_scales_of_one_layer_multiply_and_are_rounded_once() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(C, C, 3, groups=2).half()
    before = layer.weight.detach().double(), layer.bias.detach().double()
    a, b, c = (0.5 + torch.rand(C, dtype=torch.float64) for _ in range(3))
    merged, every = Float64Weights(), tuple(range(C))
    absorb(merged, layer, Absorption(layer="layer", side="output", index=every), a)
    absorb(merged, layer, Absorption(layer="layer", side="output", index=every), b)
    absorb(merged, layer, Absorption(layer="layer", side="input", index=(1, -1, 0, -1, -1, 5)), c)
    assert merged.misfit() is None
    merged.write_()
    v = torch.ones(C, dtype=torch.float64)
    v[0], v[2], v[5] = c[1], c[0], c[5]
    inputs = torch.cat([v[:3].expand(3, 3), v[3:].expand(3, 3)])
    expected = before[0] * (a * b)[:, None, None, None] * inputs[:, :, None, None]
    assert torch.equal(layer.weight, expected.half())
    assert torch.equal(layer.bias, (before[1] * a * b).half())


def test_the_writer_refuses_an_overflow() -> None:
    layer = nn.Linear(C, C).half()
    merged = Float64Weights()
    absorb(merged, layer, Absorption(layer="layer", side="input", index=tuple(range(C))), ONES * 1e9)
    misfit = merged.misfit()
    assert misfit is not None
    assert misfit.refusal({layer: "layer"}).startswith("cannot fold into 'layer': its weight overflows torch.float16")
