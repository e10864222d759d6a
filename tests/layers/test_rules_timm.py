"""timm's layers: both sides, train and eval; layers with an activation inside are scaled before it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import timm.layers.norm as norm
import timm.layers.norm_act as norm_act
import torch
from timm.layers import evo_norm, filter_response_norm, grn, layer_scale, std_conv
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.linear import Linear
from timm.models import fastvit, hgnet, metaformer, mlp_mixer, swiftformer
from torch import nn

from stripefold.errors import FoldError
from stripefold.layers.probe import probe
from stripefold.layers.refusal import refusal
from stripefold.layers.substitute import forward_with
from tests.layers.layers import (
    EXACT,
    absorbed,
    input_errors,
    noise,
    output_errors,
    randomised,
    relative,
    rule_of,
    signed_scale,
)

C = 32
MAP, TOKENS = (3, C, 4, 3), (3, 4, C)
NORMS: list[tuple[Callable[[int], nn.Module], tuple[int, ...]]] = [
    *[(getattr(norm, name), MAP) for name in ("GroupNorm", "GroupNorm1", "LayerNorm2d", "LayerNormExp2d", "RmsNorm2d")],
    *[(getattr(norm, name), TOKENS) for name in ("LayerNorm", "RmsNorm", "SimpleNorm")],
    *[(getattr(evo_norm, f"EvoNorm2d{name}"), MAP) for name in "B0 B1 B2 S0 S0a S1 S1a S2 S2a".split()],  # noqa: SIM905
    (metaformer.LayerNormNoBias, TOKENS),
    (metaformer.LayerNorm2dNoBias, MAP),
    (metaformer.GroupNorm1NoBias, MAP),
]
LINEAR: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: Linear(4, 6), (3, 4)),
    (lambda: Conv2dSame(4, 6, 3, stride=2), (2, 4, 6, 5)),
    (lambda: layer_scale.LayerScale(C), TOKENS),
    (lambda: layer_scale.LayerScale2d(C), MAP),
    (lambda: fastvit.LayerScale2d(C), MAP),
    (lambda: swiftformer.LayerScale2d(C), MAP),
    (lambda: mlp_mixer.Affine(C), TOKENS),
    (lambda: metaformer.Scale(C), MAP),
    (lambda: metaformer.Scale(C, use_nchw=False), TOKENS),
]
GAINED = [
    lambda: std_conv.ScaledStdConv2d(4, 6, 3),
    lambda: std_conv.ScaledStdConv2d(4, 6, 3, groups=2, bias=False),
    lambda: std_conv.ScaledStdConv2dSame(4, 6, 3, stride=2),
]
FLOAT32 = [
    *[getattr(norm, f"{name}Fp32") for name in ("LayerNorm", "LayerNorm2d", "RmsNorm", "RmsNorm2d", "SimpleNorm")],
    norm.SimpleNorm2dFp32,
    *[getattr(norm_act, f"{name}Fp32") for name in ("LayerNormAct", "LayerNormAct2d", "RmsNormAct", "RmsNormAct2d")],
]
ACTIVATED: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: norm_act.BatchNormAct2d(C, act_layer=nn.SiLU), MAP),
    (lambda: norm_act.BatchNormAct2d(C, act_layer=nn.Hardswish, drop_layer=nn.Dropout), MAP),
    (lambda: norm_act.FrozenBatchNormAct2d(C, act_layer=nn.GELU), MAP),
    (lambda: norm_act.GroupNormAct(C, act_layer=nn.SiLU), MAP),
    (lambda: norm_act.GroupNorm1Act(C, act_layer=nn.SiLU), MAP),
    (lambda: norm_act.LayerNormAct2d(C, act_layer=nn.SiLU), MAP),
    (lambda: norm_act.RmsNormAct2d(C, act_layer=nn.SiLU), MAP),
    (lambda: norm_act.LayerNormAct(C, act_layer=nn.SiLU), TOKENS),
    (lambda: norm_act.RmsNormAct(C, act_layer=nn.SiLU), TOKENS),
    (lambda: filter_response_norm.FilterResponseNormAct2d(C, act_layer=nn.SiLU, inplace=False), MAP),
    (lambda: filter_response_norm.FilterResponseNormTlu2d(C), MAP),
]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("layer_type", "shape"), NORMS)
def test_norms(layer_type: Callable[[int], nn.Module], shape: tuple[int, ...], train: bool) -> None:
    error, control = output_errors(layer_type(C), (noise(*shape),), train=train)
    assert error <= EXACT
    assert control > 0.1


@pytest.mark.parametrize(("factory", "shape"), LINEAR)
def test_linear_layers_on_both_sides(factory: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    for errors in (output_errors, input_errors):
        error, control = errors(factory(), (noise(*shape),), train=True)
        assert error <= EXACT
        assert control > 0.1


@pytest.mark.parametrize("factory", GAINED)
def test_standardised_convolutions_fold_into_their_gain(factory: Callable[[], nn.Module]) -> None:
    error, control = output_errors(factory(), (noise(2, 4, 5, 5),), train=True)
    assert error <= EXACT
    assert control > 0.1
    assert set(rule_of(factory()).output) == {"gain", "bias"}
    with pytest.raises(FoldError, match="has no input side"):
        absorbed(factory(), torch.ones(4), "input")


@pytest.mark.parametrize("layer_type", FLOAT32)
def test_layers_that_compute_in_float32_are_probed_to_float32(layer_type: Callable[[int], nn.Module]) -> None:
    layer = layer_type(C)
    probe(layer, rule_of(layer))
    assert rule_of(layer).tolerance == 1e-5


@pytest.mark.parametrize(("factory", "shape"), ACTIVATED)
def test_the_scale_of_an_activated_layer_stands_before_its_activation(
    factory: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    layer, x = randomised(factory()).eval(), noise(*shape)
    rule = rule_of(layer)
    assert not rule.commutes
    assert rule.linear_part is not None
    v = signed_scale(C)
    view = v.view(-1, 1, 1) if rule.axis == 1 else v
    scaled = forward_with(layer, rule.scaled(layer, v), (x.clone(),), {})
    activation = getattr(layer, "act", None)
    if activation is None:  # max(x, tau)
        expected = torch.maximum(view * rule.linear_part(layer, (x,)), layer.tau.view(-1, 1, 1))
    else:
        expected = activation(view * rule.linear_part(layer, (x,)))
    assert relative(scaled, expected) <= EXACT
    assert relative(view * copy.deepcopy(layer)(x.clone()), expected) > 0.1
    probe(layer, rule)


def test_sync_batchnorm_with_activation_is_probed_in_eval_mode() -> None:
    layer = norm_act.SyncBatchNormAct(C)
    layer.act = nn.SiLU()
    probe(layer, rule_of(layer))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (std_conv.StdConv2d(3, 4, 3), "standardised.*gate the normalisation behind it"),
        (std_conv.StdConv2dSame(3, 4, 3), "standardised.*gate the normalisation behind it"),
        (grn.GlobalResponseNorm(4), "added to its output unscaled"),
        (hgnet.LearnableAffineBlock(), "one number for all channels"),
        (norm.LayerNorm(4, affine=False), "no affine part"),
    ],
)
def test_refused_with_a_better_reason_than_no_rule(layer: nn.Module, reason: str) -> None:
    assert re.search(reason, str(refusal(layer)))
