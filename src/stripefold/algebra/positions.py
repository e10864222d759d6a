"""Scales of positions, (P,) or (C, P) in row-major order, in the shapes of what takes them up."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def flattened_scale(s: Tensor, channels: int, axis: int) -> Tensor:
    """The scale of a flattened map's elements.

    Args:
        s: (P,) for all channels alike, or (C, P).
        channels: C.
        axis: 1 where the map was (N, C, ...) before it was flattened, -1 where it was (N, ..., C).

    Returns:
        (C P,).
    """
    full = s.expand(channels, -1)
    return (full if axis == 1 else full.t()).reshape(-1)


def map_scale(s: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The scale in the shape that broadcasts to a map (N, C, *grid): (*grid), or (C, *grid)."""
    return torch.unflatten(s, -1, grid)  # not reshape: torch.fx has no shape to read


def pooling_kernel(s: Tensor, channels: int, grid: tuple[int, ...]) -> Tensor:
    """The depthwise kernel with which a convolution is the mean over all positions of ``s (.) x``.

    mean_p(s_p x_p) = sum_p (s_p / P) x_p: a kernel as large as the map, put on it once.

    Args:
        s: (P,) for all channels alike, or (C, P).
        channels: C.
        grid: sizes of the P positions.

    Returns:
        (C, 1, *grid), in memory of its own for every channel.
    """
    return (s / math.prod(grid)).expand(channels, -1).reshape(channels, 1, *grid).contiguous()
