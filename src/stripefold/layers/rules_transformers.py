"""Rules for transformers' own layers, by qualified name: transformers is not imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from stripefold.algebra.scale import scale_dim, scale_offset_gain
from stripefold.layers import names_transformers as names
from stripefold.layers.rule import Rule, add_rule
from stripefold.layers.rules_timm import activated, gain_rule, in_float32
from stripefold.layers.rules_torch import (
    along,
    batchnorm_rule,
    channel_norm_rule,
    convolution_rule,
    integer,
    linear_rule,
    noise,
    norm_rule,
    numel,
    rows,
)


def keys(listed: str) -> Iterator[str]:
    """``llama.LlamaRMSNorm`` -> ``transformers.models.llama.modeling_llama.LlamaRMSNorm``."""
    for entry in listed.split():
        model, name = entry.split(".")
        yield f"transformers.models.{model}.modeling_{model}.{name}"


def one_plus_rule(key: str) -> Rule:
    """A normalisation that multiplies by ``1 + weight``: ``weight' = v (1 + weight) - 1``."""
    output = {"weight": lambda layer, weight, v: scale_offset_gain(weight, v), "bias": along(0)}
    return in_float32(replace(channel_norm_rule(key), output=output))


def gated_rule(key: str) -> Rule:
    """A normalisation called with a second input, the gate; its weight still multiplies the output."""

    def example(layer: nn.Module, generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(noise(generator, 2, 3, numel()(layer)) for _ in range(2))

    return in_float32(replace(channel_norm_rule(key), example=example, inputs=2))


def conv1d_rule(key: str) -> Rule:
    """GPT-2's Conv1D: a linear layer with weight (in, out)."""
    return Rule(
        key=key, norm=False, axis=-1, channels=integer("nf"), output={"weight": along(1), "bias": along(0)},
        example=lambda layer, generator: (noise(generator, 2, 3, _inputs(layer)),),
        input={"weight": along(0)}, input_axis=-1, input_channels=_inputs, shrink=_shrink_conv1d,
        input_shift={"bias": _shifted_conv1d},
    )  # fmt: skip


def _shifted_conv1d(layer: nn.Module, bias: Tensor | None, t: Tensor) -> Tensor:
    product = t @ layer.weight.double()  # type: ignore[operator]
    return product if bias is None else bias + product


def _inputs(layer: nn.Module) -> int:
    weight = layer.weight
    return int(weight.shape[0])  # type: ignore[index]


def _shrink_conv1d(layer: nn.Module) -> dict[str, tuple[int, ...] | int]:
    inner, outer = (min(int(size), 8) for size in layer.weight.shape)  # type: ignore[union-attr]
    return {"weight": (inner, outer), "bias": (outer,), "nx": inner, "nf": outer}


def _register_formatted() -> None:
    """LayerNorm with ``data_format``: the channel axis is the instance's."""
    for key in keys(names.FORMATTED):
        add_rule(norm_rule(f"{key}:channels_first"))
        add_rule(channel_norm_rule(f"{key}:channels_last"))
        add_rule(replace(channel_norm_rule(key), variant=lambda layer: f":{layer.data_format}"))


def _register_norms() -> None:
    for key in keys(names.LAST_AXIS):
        add_rule(channel_norm_rule(key))
    for key in keys(names.LAST_AXIS_FLOAT32):
        add_rule(in_float32(channel_norm_rule(key)))
    for key in keys(names.ONE_PLUS):
        add_rule(one_plus_rule(key))
    for key in keys(names.GATED):
        add_rule(gated_rule(key))
    for key in keys(names.MAPS):
        add_rule(norm_rule(key))
    for key in keys(names.SEQUENCES):
        add_rule(norm_rule(key, size=(5,)))
    for key in keys(names.FROZEN):
        add_rule(batchnorm_rule(key, size=(2, 2), frozen=True))
    (bit,) = keys("bit.BitGroupNormActivation")
    add_rule(activated(norm_rule(bit), without={"activation": nn.Identity()}))
    add_rule(channel_norm_rule("transformers.models.esm.modeling_esmfold.EsmFoldLayerNorm"))
    (moonshine,) = keys("moonshine_streaming.MoonshineStreamingLayerNorm")
    add_rule(_offset_gamma_rule(moonshine))


def _offset_gamma_rule(key: str) -> Rule:
    """A gain stored as ``gamma = gain - unit_offset``."""

    def scale(layer: nn.Module, gamma: Tensor, v: Tensor) -> Tensor:
        offset = float(layer.unit_offset)  # type: ignore[arg-type]
        return scale_dim(gamma + offset, v, 0) - offset

    channels = numel("gamma")
    return Rule(
        key=key, norm=True, axis=-1, channels=channels, output={"gamma": scale}, required="gamma",
        example=rows(channels),
    )  # fmt: skip


def _register_gains() -> None:
    for key in keys(names.LAMBDA):
        add_rule(gain_rule(key, "lambda1"))
    for key in keys(names.SCALE):
        add_rule(gain_rule(key, "scale"))
    (no_norm,) = keys("mobilebert.NoNorm")
    # Called a norm, and none: an affine map of single channels.
    affine = gain_rule(no_norm, "weight", bias="bias")
    add_rule(replace(affine, norm=True, affine=lambda layer: affine.affine_map(layer) or ""))


def _register_linear() -> None:
    add_rule(conv1d_rule("transformers.pytorch_utils.Conv1D"))
    esmfold = "transformers.models.esm.modeling_esmfold.EsmFoldLinear"
    add_rule(linear_rule(esmfold), *keys("falcon.FalconLinear"))
    for key in keys(names.CONVOLUTIONS):
        add_rule(convolution_rule(key))
    for key in keys(names.PADDING_CONVOLUTIONS):
        add_rule(convolution_rule(key, pads_itself=True))


def _register() -> None:
    _register_formatted()
    _register_norms()
    _register_gains()
    _register_linear()


_register()
