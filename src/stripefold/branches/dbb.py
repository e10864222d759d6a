"""Diverse Branch Block: the kernel, a 1x1 convolution, a 1x1 convolution before the kernel, and one before an average.

The map between a 1x1 convolution and what follows it is padded by what its BatchNorm makes of zeros, not by zeros:
that is what makes the sequence one convolution at the borders too.

Source: Diverse Branch Block, Ding et al. 2021, figure 2 and section 3.3; transforms I to VI are in algebra/kernels.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stripefold.algebra.kernels import (
    Merged,
    average_kernel,
    compose_pointwise,
    concatenate_branches,
    identity_kernel,
    merge_norm,
)
from stripefold.branches.base import Branch, norm_affine
from stripefold.branches.geometry import ConvGeometry
from stripefold.branches.parts import ConvolutionBranch, silence_norm_
from stripefold.errors import BranchError


class ResidualPointwise(nn.Module):
    """A 1x1 convolution that starts as the identity; kept as the difference from it, so that decay pulls it there."""

    def __init__(self, grid: ConvGeometry) -> None:
        super().__init__()
        self.grid = grid
        self.difference = nn.Parameter(torch.zeros(grid.inputs, grid.inputs // grid.groups, *(1,) * grid.axes))

    @property
    def weight(self) -> Tensor:
        """The kernel, shape (C_in, C_in / groups, 1, ...)."""
        axes, inputs, groups = self.grid.axes, self.grid.inputs, self.grid.groups
        identity = identity_kernel(inputs, groups, (1,) * axes, (0,) * axes, device=self.difference.device)
        return self.difference + identity.to(self.difference.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *map) -> the same shape."""
        return x + self.grid.mix(x, self.difference)


class SequenceBranch(Branch):
    """A 1x1 convolution and a BatchNorm, padding, then the kernel or an average over its taps, and a BatchNorm.

    Args:
        grid: of the block.
        middle: channels between the two; None starts the 1x1 convolution as the identity, with C_in.
        average: average pooling in place of the second convolution; ``middle`` is then C_out.
    """

    def __init__(self, grid: ConvGeometry, *, middle: int | None, average: bool = False) -> None:
        super().__init__()
        self.grid = grid
        self.pointwise = ResidualPointwise(grid) if middle is None else grid.pointwise(middle)
        self.inner_bn = grid.norm(middle or grid.inputs)
        self.conv = None if average else grid.unpadded(middle or grid.inputs)
        self.bn = grid.norm()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *map) -> (N, C_out, *map)."""
        between = self.inner_bn(self.pointwise(x))
        padded = self.grid.pad(between, self._border())
        result: Tensor = self.bn(self.grid.average(padded) if self.conv is None else self.conv(padded))
        return result

    def _border(self) -> Tensor:
        """What the inner BatchNorm makes of zeros in eval mode, shape (C_mid,)."""
        norm: Any = self.inner_bn
        # The first product holds no reference to the running statistics, which later steps change in place.
        ratio = norm.running_mean * torch.rsqrt(norm.running_var + norm.eps)
        border: Tensor = norm.bias - ratio * norm.weight
        return border

    def merged(self) -> Merged:
        """See ``Branch``."""
        grid, pointwise = self.grid, self.pointwise
        weight: Any = pointwise.weight
        first = merge_norm(weight, None, *norm_affine(self.inner_bn))
        taps: Any = average_kernel(grid.outputs, grid.groups, grid.size, device=first[0].device)
        taps = taps if self.conv is None else self.conv.weight
        kernel, bias = compose_pointwise(first, (taps, None), grid.groups)
        return merge_norm(kernel, bias, *norm_affine(self.bn))

    @torch.no_grad()
    def zero_init_(self) -> None:
        """See ``Branch``."""
        silence_norm_(self.bn)


class AverageBranch(Branch):
    """The average over the kernel's taps, then a BatchNorm; for depthwise convolutions, where nothing is mixed."""

    def __init__(self, grid: ConvGeometry) -> None:
        super().__init__()
        self.grid = grid
        self.bn = grid.norm()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *map) -> (N, C, *map)."""
        result: Tensor = self.bn(self.grid.average(self.grid.pad(x)))
        return result

    def merged(self) -> Merged:
        """See ``Branch``."""
        grid, (scale, shift) = self.grid, norm_affine(self.bn)
        taps = average_kernel(grid.outputs, grid.groups, grid.size, device=scale.device)
        return merge_norm(taps, None, scale, shift)

    @torch.no_grad()
    def zero_init_(self) -> None:
        """See ``Branch``."""
        silence_norm_(self.bn)


class ConcatenatedBranch(Branch):
    """Half of the channels from a 1x1 convolution, the other half from the kernel's size, as in an Inception unit."""

    def __init__(self, grid: ConvGeometry) -> None:
        super().__init__()
        half = grid.outputs // 2
        self.point = ConvolutionBranch(grid, grid.centred(1), outputs=half)
        self.full = ConvolutionBranch(grid, outputs=grid.outputs - half)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *map) -> (N, C_out, *map)."""
        return torch.cat([self.point(x), self.full(x)], dim=1)

    def merged(self) -> Merged:
        """See ``Branch``."""
        return concatenate_branches([self.point.merged(), self.full.merged()])

    def zero_init_(self) -> None:
        """See ``Branch``."""
        self.point.zero_init_()
        self.full.zero_init_()


def build(grid: ConvGeometry, *, middle: int | None = None, concatenation: bool = False) -> dict[str, Branch]:
    """The branches.

    Args:
        grid: of the convolution.
        middle: channels between the 1x1 convolution and the kernel behind it; None is the paper's choice: C_in, or
            2 C_in where every group has one output.
        concatenation: also a branch whose channels come from two sizes of kernel (transform IV); ungrouped only.
    """
    branches: dict[str, Branch] = {"main": ConvolutionBranch(grid)}
    depthwise = grid.groups == grid.outputs
    if depthwise and grid.inputs == grid.outputs:
        branches["average"] = AverageBranch(grid)
    else:
        branches["average"] = SequenceBranch(grid, middle=grid.outputs, average=True)
    if not depthwise:
        branches["point"] = ConvolutionBranch(grid, grid.centred(1))
    if middle is None and depthwise:
        middle = 2 * grid.inputs
    branches["sequence"] = SequenceBranch(grid, middle=None if middle == grid.inputs else middle)
    if concatenation:
        branches["concatenation"] = ConcatenatedBranch(grid)
    return branches


def why_unsupported(grid: ConvGeometry, *, middle: int | None = None, concatenation: bool = False) -> str | None:
    """Why a grid cannot have these branches.

    Raises:
        BranchError: ``middle`` is no whole number from 1 on.
    """
    if middle is not None and (type(middle) is not int or middle < 1):
        raise BranchError(f"middle is {middle!r}: give a whole number from 1 on, or None for the paper's choice")
    if set(grid.size) == {1}:
        return "its kernel has one tap, in which the branches are all the same"
    if middle is not None and middle % grid.groups:
        return f"{middle} channels in the middle do not divide into its {grid.groups} groups"
    if concatenation and (grid.groups > 1 or grid.outputs < 2):
        return "concatenated branches need one group and at least two channels"
    return None
