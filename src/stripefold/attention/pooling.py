"""Pooling over every axis but batch and channel, whatever their number, and the product back onto the map.

Only :func:`_variance` and :func:`_plane` look at a shape in Python, and torch.fx takes each of them as one step, so the
dynamic forms can be traced symbolically too.
"""

from __future__ import annotations

import torch.fx
from torch import Tensor

PLANE_AXES = 4
"""axes of a batch of two-dimensional maps: samples, channels, height, width"""


def positions(x: Tensor, axis: int) -> Tensor:
    """View a feature map as channels times positions.

    Args:
        x: (N, C, ...) with ``axis=1`` or (N, ..., C) with ``axis=-1``; there may be no position axis at all.
        axis: 1 or -1.

    Returns:
        (N, C, P), P the product of all position axes (1 where there is none). No copy is made of a contiguous or a
        channels_last map.

    Example:
        >>> positions(torch.zeros(2, 3), 1).shape, positions(torch.zeros(2, 4, 5, 3), -1).shape
        (torch.Size([2, 3, 1]), torch.Size([2, 3, 20]))
    """
    if axis == 1:
        return x.unsqueeze(-1).flatten(2)
    return x.unsqueeze(1).flatten(1, -2).transpose(1, 2)


def mean_pool(x: Tensor, axis: int) -> Tensor:
    """The mean over all positions: (N, C, ...) or (N, ..., C) -> (N, C)."""
    return positions(x, axis).mean(-1)


def max_pool(x: Tensor, axis: int) -> Tensor:
    """The maximum over all positions: (N, C, ...) or (N, ..., C) -> (N, C)."""
    return positions(x, axis).amax(-1)


def scale_channels(x: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Multiply each channel of each sample by its scale.

    Args:
        x: (N, C, ...) with ``axis=1`` or (N, ..., C) with ``axis=-1``.
        scale: (N, C).
        axis: 1 or -1.

    Returns:
        The product, shaped and laid out in memory as ``x``.
    """
    product = positions(x, axis) * scale.unsqueeze(-1)
    return (product if axis == 1 else product.transpose(1, 2)).reshape_as(x)


def shift_channels(x: Tensor, shift: Tensor, axis: int) -> Tensor:
    """Add to each channel of each sample its shift; arguments and result as for :func:`scale_channels`."""
    total = positions(x, axis) + shift.unsqueeze(-1)
    return (total if axis == 1 else total.transpose(1, 2)).reshape_as(x)


def deviation_pool(x: Tensor, axis: int, epsilon: float) -> Tensor:
    """The standard deviation over all positions, sqrt(variance + epsilon).

    The variance divides by P - 1, as the attentions that use it do, and is 0 where there is one position only.

    Args:
        x: (N, C, ...) with ``axis=1`` or (N, ..., C) with ``axis=-1``.
        axis: 1 or -1.
        epsilon: added to the variance.

    Returns:
        (N, C).
    """
    return (_variance(positions(x, axis)) + epsilon).sqrt()


def as_plane(x: Tensor, axis: int) -> Tensor:
    """View any feature map as a two-dimensional one, for the attentions that pool on a grid.

    No position axis becomes a map of 1 x 1, a sequence of length L one of L x 1, and of three or more position axes
    (depth, height, width) all but the last two are averaged.

    Args:
        x: (N, C, ...) with ``axis=1`` or (N, ..., C) with ``axis=-1``.
        axis: 1 or -1.

    Returns:
        (N, C, H, W).
    """
    return _plane(x.movedim(-1, 1) if axis == -1 else x)


@torch.fx.wrap
def _variance(flat: Tensor) -> Tensor:
    return flat.var(-1, correction=1 if flat.shape[-1] > 1 else 0)


@torch.fx.wrap
def _plane(x: Tensor) -> Tensor:
    plane = x.reshape(x.shape + (1,) * max(0, PLANE_AXES - x.ndim))
    depth = tuple(range(2, plane.ndim - 2))
    return plane.mean(depth) if depth else plane
