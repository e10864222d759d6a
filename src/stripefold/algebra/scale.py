"""Scale an affine map's output or input per channel, on the map's own tensors."""

from __future__ import annotations

from torch import Tensor


def scale_dim(tensor: Tensor, v: Tensor, dim: int = 0) -> Tensor:
    """Multiply ``tensor`` by ``v`` along one axis.

    Args:
        tensor: any shape with ``tensor.shape[dim] == C``.
        v: the scale, shape (C,).
        dim: the channel axis.

    Returns:
        A tensor of ``tensor``'s shape, in the promoted dtype of the two.
    """
    rank = tensor.dim()
    after = rank - 1 - dim % rank
    return tensor * v if after == 0 else tensor * v.reshape(-1, *(1,) * after)


def scale_activation(activation: Tensor, v: Tensor, axis: int) -> Tensor:
    """``v (.) activation`` with one rounding to the activation's dtype.

    Written with a transposition and no shape reading, so that it can be traced symbolically.

    Args:
        activation: feature map, channels on ``axis``.
        v: the scale, shape (C,).
        axis: 1 (N, C, ...) or -1 (..., C).
    """
    if axis == -1:
        return (activation * v).to(activation.dtype)
    return (activation.transpose(axis, -1) * v).transpose(axis, -1).to(activation.dtype)


def shift_activation(activation: Tensor, a: Tensor, axis: int) -> Tensor:
    """``activation + a`` with one rounding; arguments as for ``scale_activation``, ``a`` of shape (C,)."""
    if axis == -1:
        return (activation + a).to(activation.dtype)
    return (activation.transpose(axis, -1) + a).transpose(axis, -1).to(activation.dtype)


def scale_grouped_input(weight: Tensor, v: Tensor, groups: int) -> Tensor:
    """``W diag(v)`` for a grouped convolution.

    Args:
        weight: shape (C_out, C_in / groups, ...).
        v: the scale of the input channels, shape (C_in,).
        groups: number of groups; output channel ``o`` reads the input channels of group ``o // (C_out / groups)``.
    """
    per_group = v.reshape(groups, 1, -1)
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return (grouped * per_group.unsqueeze(-1)).reshape(weight.shape)


def scale_transposed_output(weight: Tensor, v: Tensor, groups: int) -> Tensor:
    """``v (.)`` the output of a grouped transposed convolution.

    Args:
        weight: shape (C_in, C_out / groups, ...).
        v: the scale of the output channels, shape (C_out,).
        groups: output channel ``c`` is produced by group ``c // (C_out / groups)``.
    """
    per_group = v.reshape(groups, 1, -1)
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return (grouped * per_group.unsqueeze(-1)).reshape(weight.shape)


def scale_offset_gain(gain: Tensor, v: Tensor) -> Tensor:
    """The stored gain ``g`` of a layer that multiplies by ``1 + g`` (Gemma): ``v (1 + g) - 1``."""
    return v * (1 + gain) - 1
