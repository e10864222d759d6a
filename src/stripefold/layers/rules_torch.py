"""Rules for the layers of torch and torchvision.

Each entry is the registration of one identity from ``algebra``; the file is read as a table. Input sides exist where
they are exact: convolutions and linear layers always, a BatchNorm in eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from stripefold.algebra.merge import batchnorm_scale_shift
from stripefold.algebra.scale import scale_grouped_input, scale_transposed_output
from stripefold.layers.rule import Along, Rule, ScaleFunction, add_rule, type_key

_SMALL = 8  # channels of the twin that is probed in place of a large layer


def along(dim: int) -> ScaleFunction:
    """Scale a tensor whose channel axis is ``dim``."""
    return Along(dim)


def integer(attribute: str) -> Callable[[nn.Module], int]:
    """Read an integer attribute of a layer."""
    return lambda layer: int(getattr(layer, attribute))


def numel(attribute: str = "weight") -> Callable[[nn.Module], int]:
    """Count channels by the length of a per-channel tensor."""
    return lambda layer: int(getattr(layer, attribute).numel())


def noise(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal float64 numbers from the probe's own generator."""
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def maps(
    channels: Callable[[nn.Module], int], *size: int
) -> Callable[[nn.Module, torch.Generator], tuple[Tensor, ...]]:
    """Example (3, C, *size)."""
    return lambda layer, generator: (noise(generator, 3, channels(layer), *size),)


def rows(channels: Callable[[nn.Module], int]) -> Callable[[nn.Module, torch.Generator], tuple[Tensor, ...]]:
    """Example (2, 3, C), channels last."""
    return lambda layer, generator: (noise(generator, 2, 3, channels(layer)),)


AFFINE = {"weight": along(0), "bias": along(0)}


def _eps(layer: nn.Module) -> float:
    """What a BatchNorm adds to its variance; transformers' frozen copies have it in their code."""
    return float(getattr(layer, "eps", 1e-5))


def _batchnorm_input_bias(layer: nn.Module, beta: Tensor, v: Tensor) -> Tensor:
    """``beta'`` with ``gamma' = v gamma`` and unchanged statistics: no division by v, so v = 0 is exact too.

    gamma (v x - mean) / s + beta = (v gamma) (x - mean) / s + beta - gamma mean (1 - v) / s
    """
    mean, variance = _tensor(layer, "running_mean"), _tensor(layer, "running_var")
    scale, _ = batchnorm_scale_shift(mean, variance, _eps(layer), _tensor(layer, "weight"), None)
    return beta.double() - scale * mean.double() * (1 - v.double())


def _tensor(layer: nn.Module, attribute: str) -> Tensor:
    value = getattr(layer, attribute)
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(layer).__name__}.{attribute} is {type(value).__name__}, not a tensor")
    return value


def _batchnorm_input_refuse(layer: nn.Module) -> str | None:
    if getattr(layer, "running_mean", None) is None:
        return "without running statistics the batch's own undo the scale"
    if getattr(layer, "bias", None) is None:
        return "it has no bias to take the shift of the mean"
    return None


BATCHNORM_INPUT = {"weight": along(0), "bias": _batchnorm_input_bias}


def _batchnorm_affine(layer: nn.Module) -> tuple[Tensor, Tensor] | str:
    mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    if mean is None or variance is None:
        return _NO_STATISTICS
    return batchnorm_scale_shift(
        mean, variance, _eps(layer), getattr(layer, "weight", None), getattr(layer, "bias", None)
    )


_NO_STATISTICS = "it keeps no running statistics"


def _no_statistics(layer: nn.Module) -> str | None:
    return _NO_STATISTICS if getattr(layer, "running_mean", None) is None else None


def _shifted_mean(layer: nn.Module, mean: Tensor | None, t: Tensor) -> Tensor:
    """``B(x + t)`` is ``B(x)`` with its running mean less by t; batch statistics take it away anyway."""
    return -t if mean is None else mean - t


def batchnorm_rule(key: str, *, size: tuple[int, ...], frozen: bool = False) -> Rule:
    """A BatchNorm; ``frozen``: its statistics are constants in train mode too."""
    channels = numel()
    return Rule(
        key=key, norm=True, axis=1, channels=channels, output=AFFINE, example=maps(channels, *size),
        input=BATCHNORM_INPUT, input_axis=1, input_channels=channels,
        input_refuse=_batchnorm_input_refuse, input_eval_only=not frozen,
        input_shift={"running_mean": _shifted_mean}, input_shift_refuse=_no_statistics, affine=_batchnorm_affine,
    )  # fmt: skip


def norm_rule(key: str, *, size: tuple[int, ...] = (4, 4)) -> Rule:
    """A normalisation over (N, C, ...) whose statistics see the scale: output side only."""
    return Rule(key=key, norm=True, axis=1, channels=numel(), output=AFFINE, example=maps(numel(), *size))


def _refuse_many_dims(layer: nn.Module) -> str | None:
    """With more than one normalised axis the layer itself does not say which of them the channels are."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dim() == 1:
        return None
    return (
        f"it normalises over {weight.dim()} axes (weight {tuple(weight.shape)}), so that its channel axis is unknown; "
        f"register a Rule with the right axis for a subclass of it"
    )


def channel_norm_rule(key: str) -> Rule:
    """A normalisation over the last axis (..., C) with a gain and perhaps a bias."""
    return Rule(
        key=key, norm=True, axis=-1, channels=numel(), output=AFFINE, example=rows(numel()), refuse=_refuse_many_dims
    )


def _convolution_example(layer: nn.Module, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The smallest map that the kernel, its dilation and the padding mode allow, plus one."""
    dims = len(layer.kernel_size)  # type: ignore[arg-type]
    reach = [d * (k - 1) + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]  # type: ignore[arg-type]
    padding = (0,) * dims if isinstance(layer.padding, str) else tuple(layer.padding)  # type: ignore[arg-type]
    size = [max(r, p + 1) + 1 for r, p in zip(reach, padding, strict=True)]
    return (noise(generator, 2, int(layer.in_channels), *size),)  # type: ignore[arg-type]


def _convolution_input(layer: nn.Module, weight: Tensor, v: Tensor) -> Tensor:
    return scale_grouped_input(weight, v, int(layer.groups))  # type: ignore[arg-type]


def _shrink_convolution(layer: nn.Module) -> dict[str, tuple[int, ...] | int]:
    """Fewer groups and fewer channels in each of them."""
    weight, groups = _tensor(layer, "weight"), int(layer.groups)  # type: ignore[arg-type]
    groups_kept = min(groups, _SMALL if weight.shape[1] == 1 else 2)
    inner = min(weight.shape[1], _SMALL)
    outer = groups_kept * min(weight.shape[0] // groups, _SMALL)
    return {
        "weight": (outer, inner, *weight.shape[2:]), "bias": (outer,),
        "groups": groups_kept, "in_channels": groups_kept * inner, "out_channels": outer,
    }  # fmt: skip


def convolution_rule(key: str, *, pads_itself: bool = False) -> Rule:
    """A convolution with weight (C_out, C_in / groups, ...); every padding mode commutes with a scale.

    Args:
        key: of the type.
        pads_itself: its ``forward`` adds zeros that ``padding`` does not tell, unless kernel and stride are 1: a shift
            of its input would have to be in them, too.
    """
    return Rule(
        key=key, norm=False, axis=1, channels=integer("out_channels"), output=AFFINE, example=_convolution_example,
        input={"weight": _convolution_input}, input_axis=1, input_channels=integer("in_channels"),
        shrink=_shrink_convolution, input_shift={"bias": _shifted_convolution},
        input_shift_refuse=_pads_itself_with_zeros if pads_itself else _pads_with_zeros,
    )  # fmt: skip


def _plus(bias: Tensor | None, constant: Tensor) -> Tensor:
    return constant if bias is None else bias + constant


def _shifted_convolution(layer: nn.Module, bias: Tensor | None, t: Tensor) -> Tensor:
    """``b + W t``."""
    return _plus(bias, _convolution_input(layer, _tensor(layer, "weight").double(), t).flatten(1).sum(1))


_ZEROS = "its zero padding would have to become the shift"


def _pads_with_zeros(layer: nn.Module) -> str | None:
    padding, kernel = layer.padding, layer.kernel_size
    padded = padding == "same" and kernel != (1,) * len(kernel) if isinstance(padding, str) else any(padding)  # type: ignore[arg-type]
    return _ZEROS if padded and layer.padding_mode == "zeros" else None


def _pads_itself_with_zeros(layer: nn.Module) -> str | None:
    return _pads_with_zeros(layer) or (None if _is_point(layer) else _ZEROS)


def _is_point(layer: nn.Module) -> bool:
    """Whether every place of the output sees one place of the input, and every place of that."""
    return math.prod((*layer.kernel_size, *layer.stride)) == 1  # type: ignore[misc]


def _shifted_linear(layer: nn.Module, bias: Tensor | None, t: Tensor) -> Tensor:
    return _plus(bias, _tensor(layer, "weight").double() @ t)


def _transposed_output(layer: nn.Module, weight: Tensor, v: Tensor) -> Tensor:
    return scale_transposed_output(weight, v, int(layer.groups))  # type: ignore[arg-type]


def _shifted_transposed(layer: nn.Module, bias: Tensor | None, t: Tensor) -> Tensor:
    """``b + W^T t``, where every tap reaches every place."""
    weight, groups = _tensor(layer, "weight").double().flatten(2).sum(2), int(layer.groups)  # type: ignore[arg-type]
    return _plus(bias, (weight * t[:, None]).view(groups, -1, weight.shape[1]).sum(1).flatten())


def _lays_a_pattern(layer: nn.Module) -> str | None:
    """Each tap of a kernel goes elsewhere, and between the steps there is nothing but the bias."""
    return None if _is_point(layer) else "its kernel lays a shift of its input down in a pattern"


def transposed_rule(key: str) -> Rule:
    """A transposed convolution with weight (C_in, C_out / groups, ...)."""
    return Rule(
        key=key, norm=False, axis=1, channels=integer("out_channels"), example=_convolution_example,
        output={"weight": _transposed_output, "bias": along(0)},
        input={"weight": along(0)}, input_axis=1, input_channels=integer("in_channels"),
        input_shift={"bias": _shifted_transposed}, input_shift_refuse=_lays_a_pattern,
    )  # fmt: skip


def _shrink_linear(layer: nn.Module) -> dict[str, tuple[int, ...] | int]:
    outer, inner = (min(int(size), _SMALL) for size in _tensor(layer, "weight").shape)
    return {"weight": (outer, inner), "bias": (outer,), "in_features": inner, "out_features": outer}


def linear_rule(key: str) -> Rule:
    """``x W^T + b`` with weight (out, in)."""
    return Rule(
        key=key, norm=False, axis=-1, channels=integer("out_features"), output=AFFINE,
        example=rows(integer("in_features")),
        input={"weight": along(1)}, input_axis=-1, input_channels=integer("in_features"), shrink=_shrink_linear,
        input_shift={"bias": _shifted_linear},
    )  # fmt: skip


def _bilinear_example(layer: nn.Module, generator: torch.Generator) -> tuple[Tensor, ...]:
    return tuple(noise(generator, 3, integer(f"in{side}_features")(layer)) for side in (1, 2))


_BATCHNORMS = (
    (nn.BatchNorm1d, (4,)),
    (nn.BatchNorm2d, (2, 2)),
    (nn.BatchNorm3d, (2, 1, 2)),
    (nn.SyncBatchNorm, (2, 2)),
)
_INSTANCENORMS = ((nn.InstanceNorm1d, (4,)), (nn.InstanceNorm2d, (2, 3)), (nn.InstanceNorm3d, (2, 1, 3)))


def _register() -> None:
    for batchnorm, size in _BATCHNORMS:
        add_rule(batchnorm_rule(type_key(batchnorm), size=size))
    add_rule(batchnorm_rule("torchvision.ops.misc.FrozenBatchNorm2d", size=(2, 2), frozen=True))
    for instancenorm, size in _INSTANCENORMS:
        add_rule(norm_rule(type_key(instancenorm), size=size))
    add_rule(norm_rule(type_key(nn.GroupNorm)), "torchvision.models.convnext.LayerNorm2d")
    add_rule(channel_norm_rule(type_key(nn.LayerNorm)), type_key(nn.RMSNorm))
    for convolution in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        add_rule(convolution_rule(type_key(convolution)))
    video = "torchvision.models.video.resnet.Conv3D"
    add_rule(convolution_rule(f"{video}Simple"), f"{video}NoTemporal")
    for transposed in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        add_rule(transposed_rule(type_key(transposed)))
    add_rule(linear_rule(type_key(nn.Linear)))
    add_rule(replace(linear_rule("torch.nn.modules.linear.NonDynamicallyQuantizableLinear"), called=False))
    bilinear = linear_rule(type_key(nn.Bilinear))
    add_rule(replace(bilinear, example=_bilinear_example, inputs=2, input=None, input_shift=None, shrink=None))


_register()
