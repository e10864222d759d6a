"""Merge affine maps that follow each other."""

from __future__ import annotations

import torch
from torch import Tensor


def batchnorm_scale_shift(
    running_mean: Tensor, running_var: Tensor, eps: float, gamma: Tensor | None, beta: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A BatchNorm in eval mode as ``y = scale x + shift``, in float64.

    Args:
        running_mean: shape (C,).
        running_var: shape (C,).
        eps: added to the variance.
        gamma: shape (C,), or None for 1.
        beta: shape (C,), or None for 0.

    Returns:
        ``scale`` and ``shift``, shape (C,), float64.
    """
    scale = torch.rsqrt(running_var.double() + eps)
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -running_mean.double() * scale
    if beta is not None:
        shift = shift + beta.double()
    return scale, shift


def shift_bias(bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """The bias of ``scale (W x + b) + shift``, in float64; shapes (C,)."""
    return shift if bias is None else bias.double() * scale + shift
