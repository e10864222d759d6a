"""How several linear branches become one convolution kernel: the transforms of re-parameterization, in float64.

A branch is a pair (kernel, bias): kernel of shape (C_out, C_in / groups, *size), bias of shape (C_out,) or None. All
branches of one block lie on the same grid of taps, so that adding their kernels adds their outputs.

Source: Diverse Branch Block, Ding et al. 2021, section 3.2, transforms I to VI; DO-Conv, Cao et al. 2020, equation 6.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stripefold.algebra.merge import shift_bias
from stripefold.algebra.scale import scale_dim

Merged = tuple[Tensor, Tensor | None]
"""Kernel (C_out, C_in / groups, *size) and bias (C_out,) or None, both float64."""


def merge_norm(kernel: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> Merged:
    """Transform I: a convolution and the normalisation behind it, ``scale (K * x + b) + shift``.

    Args:
        kernel: shape (C_out, C_in / groups, *size).
        bias: shape (C_out,), or None.
        scale: shape (C_out,), of ``batchnorm_scale_shift``.
        shift: shape (C_out,), likewise.

    Source: DBB, equation 3.
    """
    return scale_dim(kernel.double(), scale.double()), shift_bias(bias, scale.double(), shift.double())


def add_branches(branches: Sequence[Merged]) -> Merged:
    """Transform II: branches whose outputs are added.

    Args:
        branches: kernels of one shape.

    Raises:
        ValueError: no branches, or kernels of different shapes.

    Source: DBB, equation 5.
    """
    shapes = {tuple(kernel.shape) for kernel, _ in branches}
    if len(shapes) != 1:
        raise ValueError(f"branches that are added need kernels of one shape, got {sorted(shapes)}")
    kernel = torch.stack([kernel.double() for kernel, _ in branches]).sum(0)
    biases = [bias.double() for _, bias in branches if bias is not None]
    return kernel, torch.stack(biases).sum(0) if biases else None


def compose_pointwise(first: Merged, second: Merged, groups: int) -> Merged:
    """Transform III: a 1x1 convolution and a convolution behind it, both with the same groups.

    Exact where the map between them is padded as a constant input of the first would be: with the first one's bias for
    zero padding, with the map's own values for every other mode.

    Args:
        first: kernel (C_mid, C_in / groups, 1, ...).
        second: kernel (C_out, C_mid / groups, *size).
        groups: of both.

    Raises:
        ValueError: the first kernel is not 1x1, or the channels do not fit.

    Returns:
        Kernel (C_out, C_in / groups, *size); a bias where either has one.

    Source: DBB, equations 6 to 8; the groups are concatenated as in its transform IV.
    """
    (kernel, bias), (behind, behind_bias) = first, second
    middle, outer = kernel.shape[0], behind.shape[0]
    if kernel[0, 0].numel() != 1 or middle % groups or outer % groups or behind.shape[1] * groups != middle:
        raise ValueError(
            f"a kernel of shape {tuple(kernel.shape)} does not compose with one of shape {tuple(behind.shape)} in "
            f"{groups} groups: the first must be 1x1 and give what the second takes"
        )
    mixing = kernel.double().reshape(groups, middle // groups, kernel.shape[1])
    taps = behind.double().reshape(groups, outer // groups, middle // groups, -1)
    composed = torch.einsum("gmi,gomk->goik", mixing, taps).reshape(outer, kernel.shape[1], *behind.shape[2:])
    if bias is None:
        return composed, None if behind_bias is None else behind_bias.double()
    carried = torch.einsum("gm,gomk->go", bias.double().reshape(groups, -1), taps).reshape(outer)
    return composed, carried if behind_bias is None else carried + behind_bias.double()


def concatenate_branches(branches: Sequence[Merged]) -> Merged:
    """Transform IV: branches whose outputs are concatenated along the channels; ungrouped convolutions only.

    Args:
        branches: kernels (C_k, C_in, *size) of one C_in and size; a missing bias counts as 0 where another has one.

    Returns:
        Kernel (sum of C_k, C_in, *size).

    Source: DBB, equation 9.
    """
    kernel = torch.cat([kernel.double() for kernel, _ in branches])
    if all(bias is None for _, bias in branches):
        return kernel, None
    return kernel, torch.cat([_or_zeros(bias, part) for part, bias in branches])


def _or_zeros(bias: Tensor | None, kernel: Tensor) -> Tensor:
    return kernel.new_zeros(kernel.shape[0]).double() if bias is None else bias.double()


def average_kernel(channels: int, groups: int, size: Sequence[int], *, device: torch.device | None = None) -> Tensor:
    """Transform V: average pooling as a kernel, shape (C, C / groups, *size), float64, on the device (None: CPU).

    Source: DBB, equation 10.
    """
    taps = torch.ones(tuple(size), dtype=torch.float64, device=device or "cpu")
    return _diagonal(channels, groups, device).reshape(channels, -1, *(1,) * len(size)) * (taps / taps.numel())


def embed_kernel(kernel: Tensor, size: Sequence[int], offset: Sequence[int], step: Sequence[int]) -> Tensor:
    """Transform VI: a small or dilated kernel on a larger grid of taps, zeros elsewhere.

    Args:
        kernel: shape (C_out, C_in / groups, *small).
        size: of the grid, per axis.
        offset: tap of the grid on which the kernel's first tap lies, per axis.
        step: distance of the kernel's taps on the grid, per axis (its dilation in units of the grid's).

    Raises:
        ValueError: the kernel reaches beyond the grid.

    Source: DBB, section 3.2; UniRepLKNet, Ding et al. 2024, section 3.1 (dilated kernels).
    """
    slices = [slice(None), slice(None)]
    for taps, whole, start, every in zip(kernel.shape[2:], size, offset, step, strict=True):
        end = start + (taps - 1) * every + 1
        if start < 0 or end > whole:
            raise ValueError(
                f"a kernel of size {tuple(kernel.shape[2:])} at {tuple(offset)} in steps of {tuple(step)} does not fit "
                f"into a grid of {tuple(size)}"
            )
        slices.append(slice(start, end, every))
    embedded = kernel.new_zeros((*kernel.shape[:2], *size), dtype=torch.float64)
    embedded[tuple(slices)] = kernel.double()
    return embedded


def identity_kernel(
    channels: int, groups: int, size: Sequence[int], offset: Sequence[int], *, device: torch.device | None = None
) -> Tensor:
    """The kernel, shape (C, C / groups, *size), float64, that returns what lies under one of its taps.

    Args:
        channels: C, in and out.
        groups: of the convolution.
        size: of the grid, per axis.
        offset: the tap.
        device: where the result lies; None is the CPU.

    Source: RepVGG, Ding et al. 2021, section 3.3.
    """
    point = _diagonal(channels, groups, device).reshape(channels, -1, *(1,) * len(size))
    return embed_kernel(point, size, offset, (1,) * len(size))


def _diagonal(channels: int, groups: int, device: torch.device | None) -> Tensor:
    """Each output channel reads its own input channel: shape (C, C / groups)."""
    return torch.eye(channels // groups, dtype=torch.float64, device=device or "cpu").repeat(groups, 1)


def compose_depthwise(depthwise: Tensor, pointwise: Tensor, taps: int) -> Tensor:
    """DO-Conv: the kernel of a depthwise over-parameterised convolution, differentiable, in the factors' own dtype.

    Written without reading shapes, so that it can be traced symbolically.

    Args:
        depthwise: D without its identity, shape (groups, C_in / groups, taps, depth), depth >= taps.
        pointwise: W, shape (groups, C_out / groups, C_in / groups, depth).
        taps: the product of the kernel's size.

    Returns:
        Shape (groups, C_out / groups, C_in / groups, taps): W[o, i, m] + sum over s of D[i, m, s] W[o, i, s].

    Source: DO-Conv, equation 6 (kernel composition); the identity as in its published code.
    """
    return pointwise.narrow(-1, 0, taps) + torch.einsum("gims,gois->goim", depthwise, pointwise)
