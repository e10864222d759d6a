"""Rules for timm's layers, by qualified name: timm is not imported.

Names of several timm versions are listed; every rule is probed on the layer it is used for, so that a class that
changes its formula under an old name is refused rather than folded wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from stripefold.layers.rule import Rule, add_rule
from stripefold.layers.rules_torch import (
    along,
    batchnorm_rule,
    channel_norm_rule,
    convolution_rule,
    linear_rule,
    maps,
    norm_rule,
    numel,
    rows,
)
from stripefold.layers.substitute import forward_with

FLOAT32_INSIDE = 1e-5
"""Probe tolerance for layers that cast to float32 whatever they are given."""


def activated(rule: Rule, without: Mapping[str, Any] | None = None) -> Rule:
    """The rule of a layer with an activation behind its affine part: the gate stands before the activation.

    Args:
        rule: of the affine part.
        without: attribute -> what stands in for it when the activation is taken out.
    """
    taken_out = {"act": nn.Identity(), "drop": nn.Identity()} if without is None else without

    def linear_part(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        output: Tensor = forward_with(layer, taken_out, inputs, {})
        return output

    return replace(rule, commutes=False, linear_part=linear_part)  # an input side lies before the activation, too


def in_float32(rule: Rule) -> Rule:
    """The same rule for a layer that computes in float32."""
    return replace(rule, tolerance=FLOAT32_INSIDE)


def gain_rule(key: str, attribute: str, *, axis: int = -1, dim: int = 0, bias: str | None = None) -> Rule:
    """A per-channel multiplication (LayerScale), perhaps with a bias; it takes a scale of its input as well."""
    channels = numel(attribute)
    output = {attribute: along(dim)} if bias is None else {attribute: along(dim), bias: along(dim)}

    def shifted(layer: nn.Module, offset: Tensor | None, t: Tensor) -> Tensor:
        gain: Tensor = getattr(layer, attribute)
        product = gain.double() * t.view(gain.shape)
        return product if offset is None else offset + product.view(offset.shape)

    return Rule(
        key=key, norm=False, axis=axis, channels=channels, output=output, required=attribute,
        example=rows(channels) if axis == -1 else maps(channels, 2, 3),
        input={attribute: along(dim)}, input_axis=axis, input_channels=channels,
        input_shift=None if bias is None else {bias: shifted},
    )  # fmt: skip


def gained_convolution_rule(key: str) -> Rule:
    """A weight-standardised convolution with a gain (C, 1, 1, 1): the weight itself carries no scale and no shift."""
    output = {"gain": along(0), "bias": along(0)}
    return replace(convolution_rule(key), output=output, required="gain", input=None, input_shift=None, shrink=None)


def _register_norms() -> None:
    layers = "timm.layers.norm."
    add_rule(norm_rule(f"{layers}GroupNorm"), f"{layers}GroupNorm1", "timm.models.metaformer.GroupNorm1NoBias")
    last = [f"{layers}{name}" for name in ("LayerNorm", "RmsNorm", "SimpleNorm")]
    for key in (*last, "timm.models.metaformer.LayerNormNoBias"):
        add_rule(channel_norm_rule(key))
    first = [f"{layers}{name}" for name in ("LayerNorm2d", "LayerNormExp2d", "RmsNorm2d", "SimpleNorm2d")]
    for key in (*first, "timm.models.metaformer.LayerNorm2dNoBias"):
        add_rule(norm_rule(key))
    for name in ("LayerNormFp32", "RmsNormFp32", "SimpleNormFp32"):
        add_rule(in_float32(channel_norm_rule(f"{layers}{name}")))
    for name in ("LayerNorm2dFp32", "RmsNorm2dFp32", "SimpleNorm2dFp32"):
        add_rule(in_float32(norm_rule(f"{layers}{name}")))
    for name in ("B0", "B1", "B2", "S0", "S0a", "S1", "S1a", "S2", "S2a"):  # the non-linearity comes before the gain
        add_rule(norm_rule(f"timm.layers.evo_norm.EvoNorm2d{name}"))


def _drop_and_act(layer: nn.Module) -> nn.Module:
    """The dropout and the activation that a norm carries."""
    carried = [layer._modules.get(name) for name in ("drop", "act")]
    parts = [part for part in carried if part is not None and not isinstance(part, nn.Identity)]
    return nn.Sequential(*parts) if len(parts) > 1 else parts[0] if parts else nn.Identity()


def _register_activated() -> None:
    layers = "timm.layers.norm_act."
    for name in ("BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d"):
        add_rule(replace(activated(batchnorm_rule(f"{layers}{name}", size=(2, 2))), leftover=_drop_and_act))
    for name in ("GroupNormAct", "GroupNorm1Act", "LayerNormAct2d", "RmsNormAct2d"):
        add_rule(activated(norm_rule(f"{layers}{name}")))
    for name in ("LayerNormAct", "RmsNormAct"):
        add_rule(activated(channel_norm_rule(f"{layers}{name}")))
    for name in ("LayerNormAct2dFp32", "RmsNormAct2dFp32"):
        add_rule(in_float32(activated(norm_rule(f"{layers}{name}"))))
    for name in ("LayerNormActFp32", "RmsNormActFp32"):
        add_rule(in_float32(activated(channel_norm_rule(f"{layers}{name}"))))
    response = "timm.layers.filter_response_norm.FilterResponseNorm"
    add_rule(activated(norm_rule(f"{response}Act2d")))
    add_rule(activated(norm_rule(f"{response}Tlu2d"), without={"tau": None}))


def _register_convolutions() -> None:
    add_rule(linear_rule("timm.layers.linear.Linear"))
    same = convolution_rule("timm.layers.conv2d_same.Conv2dSame", pads_itself=True)
    add_rule(same, "timm.layers.conv2d_same.Conv2dSameExport")
    standardised = "timm.layers.std_conv.ScaledStdConv2d"
    add_rule(gained_convolution_rule(standardised), f"{standardised}Same")


def _register_gains() -> None:
    last = [f"timm.models.{room}.LayerScale" for room in ("vision_transformer", "maxxvit", "efficientformer")]
    add_rule(gain_rule("timm.layers.layer_scale.LayerScale", "gamma"), *last)
    rooms = ("maxxvit", "efficientformer", "efficientformer_v2", "fastvit", "swiftformer")
    first = [f"timm.models.{room}.LayerScale2d" for room in rooms]
    add_rule(gain_rule("timm.layers.layer_scale.LayerScale2d", "gamma", axis=1), *first)
    add_rule(gain_rule("timm.models.mlp_mixer.Affine", "alpha", dim=-1, bias="beta"))
    scale = "timm.models.metaformer.Scale"
    for ending, axis in ((":nchw", 1), (":channels_last", -1)):
        add_rule(gain_rule(f"{scale}{ending}", "scale", axis=axis))
    add_rule(replace(gain_rule(scale, "scale"), variant=_scale_variant))


def _scale_variant(layer: nn.Module) -> str:
    return ":nchw" if len(layer.shape) == 3 else ":channels_last"  # type: ignore[arg-type]


def _register() -> None:
    _register_norms()
    _register_activated()
    _register_convolutions()
    _register_gains()


_register()
