"""The range of each output channel's weights before and after folding: what one int8 scale has to cover.

Folding multiplies output channel c of a weight by v_c, and fusing by gamma_c / sigma_c. Rounding to int8 with one scale
per tensor then loses the small channels; with one scale per channel nothing changes, because the scale of a channel
takes up any factor of it: round(v w / (v s)) = round(w / s).

Source: Nagel et al. 2019, section 3 (ranges of channels under one scale), arXiv 1906.04721.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from stripefold.errors import ExportError
from stripefold.modules.foldable import Foldable

LEVELS = 127
COLUMNS = ("layer", "channels", "spread", "after", "error, one scale", "after", "error, per channel", "after")
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


@dataclass(frozen=True, kw_only=True)
class WeightRange:
    """How the weights of one layer fill int8.

    Attributes:
        channels: number of output channels.
        spread: the largest channel's range (largest absolute value) over the median channel's.
        tensor_error: relative root mean square error of rounding to int8 with one scale.
        channel_error: the same with one scale per output channel.
    """

    channels: int
    spread: float
    tensor_error: float
    channel_error: float


@dataclass(frozen=True, kw_only=True)
class RangeTable:
    """Layers that both models have, in the first one's order: name -> (before, after)."""

    layers: dict[str, tuple[WeightRange, WeightRange]]

    def rows(self) -> list[tuple[str, ...]]:
        """Return one tuple of cells per layer, in the order of `COLUMNS`."""
        return [_cells(name, *pair) for name, pair in self.layers.items()]

    def worst(self) -> tuple[str, float]:
        """Return the layer whose error under one scale grew most, and by which factor."""
        growth = {name: after.tensor_error / before.tensor_error for name, (before, after) in self._rounded().items()}
        if not growth:
            return "", 1.0
        name = max(growth, key=lambda each: growth[each])
        return name, growth[name]

    def _rounded(self) -> dict[str, tuple[WeightRange, WeightRange]]:
        return {name: pair for name, pair in self.layers.items() if pair[0].tensor_error > 0}

    def __str__(self) -> str:
        """Return an aligned plain table."""
        rows = [COLUMNS, *self.rows()]
        widths = [max(len(row[index]) for row in rows) for index in range(len(COLUMNS))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def compare_ranges(before: nn.Module, after: nn.Module) -> RangeTable:
    """Compare the weights of convolutions and linear layers of two models, such as trained and folded.

    Args:
        before: attached or plain; of a gated layer, the weight without its gate counts.
        after: the folded or fused model.

    Raises:
        ExportError: the two share no such layer.
    """
    first, second = _weights(before), _weights(after)
    shared = [name for name in first if name in second and first[name].shape == second[name].shape]
    if not shared:
        raise ExportError(
            f"{type(before).__name__} and {type(after).__name__} share no convolution or linear layer: give a model "
            "and its folded form"
        )
    return RangeTable(layers={name: (weight_range(first[name]), weight_range(second[name])) for name in shared})


@torch.no_grad()
def weight_range(weight: Tensor) -> WeightRange:
    """How a weight (C, K), one row per output channel, fills int8."""
    weight = weight.double()
    ranges = weight.abs().amax(1)
    median = float(ranges.median())
    return WeightRange(
        channels=len(weight),
        spread=float(ranges.max()) / median if median else float("inf"),
        tensor_error=_rounding_error(weight, ranges.max()),
        channel_error=_rounding_error(weight, ranges[:, None]),
    )


def _rounding_error(weight: Tensor, largest: Tensor) -> float:
    """Relative root mean square error of rounding to -127 .. 127 steps of ``largest / 127``."""
    step = (largest / LEVELS).clamp(min=torch.finfo(weight.dtype).tiny)
    rounded = (weight / step).round() * step
    size = float(weight.square().mean())
    return (float((rounded - weight).square().mean()) / size) ** 0.5 if size else 0.0


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Dotted path in the plain model -> weight (C, K) of every layer that int8 rounds."""
    sites = {name for name, module in model.named_modules() if isinstance(module, Foldable)}
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        parent, _, leaf = name.rpartition(".")
        inside = any(name.startswith(f"{site}.") for site in sites)
        if inside and (leaf != "base" or parent not in sites):
            continue  # a gate's own layers
        if isinstance(module, _WEIGHTED):
            found[parent if inside else name] = _by_channel(module)
    return found


def _by_channel(layer: nn.Module) -> Tensor:
    """The weight with one row per output channel, (C, K)."""
    weight = cast("Tensor", layer.weight).detach()
    if isinstance(layer, _TRANSPOSED):  # (in, out / groups, ...)
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)


def _cells(name: str, before: WeightRange, after: WeightRange) -> tuple[str, ...]:
    return (
        name,
        str(before.channels),
        f"{before.spread:.2f}",
        f"{after.spread:.2f}",
        f"{before.tensor_error:.2%}",
        f"{after.tensor_error:.2%}",
        f"{before.channel_error:.2%}",
        f"{after.channel_error:.2%}",
    )
