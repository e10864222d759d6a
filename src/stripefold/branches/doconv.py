"""DO-Conv: the kernel is the product of a depthwise and an ordinary factor; no BatchNorm of its own.

Source: DO-Conv: Depthwise Over-parameterized Convolutional Layer, Cao et al. 2020, section 3. The depthwise factor D is
kept as its difference from the identity, as there, so that weight decay pulls the kernel to W and not to 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.algebra.kernels import Merged, compose_depthwise
from stripefold.branches.base import Branch, PrimaryBranch
from stripefold.branches.geometry import ConvGeometry
from stripefold.errors import BranchError

MOST_DEPTH = 256


class OverparameterizedBranch(PrimaryBranch):
    """A convolution whose kernel is computed: K[o, i, m] = W[o, i, m] + sum over s of D[i, m, s] W[o, i, s].

    Args:
        grid: of the block.
        depth: number of s; at least the taps of the kernel.
    """

    bias: nn.Parameter | None

    def __init__(self, grid: ConvGeometry, depth: int) -> None:
        super().__init__()
        self.grid, self.taps = grid, math.prod(grid.size)
        inner, outer = grid.inputs // grid.groups, grid.outputs // grid.groups
        self.depthwise = nn.Parameter(torch.zeros(grid.groups, inner, self.taps, depth))
        self.pointwise = nn.Parameter(torch.empty(grid.groups, outer, inner, depth))
        self.register_parameter("bias", None)
        bound = 1 / math.sqrt(inner * self.taps)  # of a convolution with this kernel, as torch starts one
        nn.init.uniform_(self.pointwise, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *map) -> (N, C_out, *map)."""
        return self.grid.convolve(x, self._kernel(self.depthwise, self.pointwise), self.bias)

    def _kernel(self, depthwise: Tensor, pointwise: Tensor) -> Tensor:
        """Shape (C_out, C_in / groups, *size), in the factors' dtype, autocast or not."""
        parameter = self._parameters["pointwise"]  # not self.pointwise, which torch.fx replaces by a proxy
        assert parameter is not None
        device = parameter.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                kernel = compose_depthwise(depthwise, pointwise, self.taps)
        else:
            kernel = compose_depthwise(depthwise, pointwise, self.taps)
        return kernel.reshape(self.grid.kernel_shape)

    def merged(self) -> Merged:
        """See ``Branch``."""
        bias = None if self.bias is None else self.bias.double()
        return self._kernel(self.depthwise.double(), self.pointwise.double()), bias

    @torch.no_grad()
    def zero_init_(self) -> None:
        """See ``Branch``: W is 0 and has a gradient."""
        self.pointwise.zero_()

    @torch.no_grad()
    def load_conv_(self, convolution: Any) -> None:
        """See ``PrimaryBranch``: W begins with the weight; what is beyond the taps keeps its random start."""
        self.pointwise[..., : self.taps] = convolution.weight.reshape(*self.pointwise.shape[:3], -1)
        self.pointwise.requires_grad_(convolution.weight.requires_grad)
        self._parameters["bias"] = convolution.bias

    @torch.no_grad()
    def init_identity_(self) -> None:
        """See ``PrimaryBranch``: D is 0."""
        self.depthwise.zero_()

    def flags(self) -> tuple[bool, bool]:
        """See ``PrimaryBranch``."""
        return self.pointwise.requires_grad, self.bias is not None and self.bias.requires_grad


def build(grid: ConvGeometry, *, depth: int | None = None) -> dict[str, Branch]:
    """The one branch.

    Args:
        grid: of the convolution.
        depth: the paper's D_mul, at least the number of taps; None is that number, as in its experiments.
    """
    return {"main": OverparameterizedBranch(grid, depth or math.prod(grid.size))}


def why_unsupported(grid: ConvGeometry, *, depth: int | None = None) -> str | None:
    """Why a grid cannot have this branch.

    Raises:
        BranchError: ``depth`` is no whole number, or one that no memory holds.
    """
    if depth is not None and type(depth) is not int:
        raise BranchError(f"depth is {depth!r}: give a whole number, or None for the number of taps")
    taps = math.prod(grid.size)
    if taps == 1:
        return "its kernel has one tap: a depthwise factor would be one number per channel"
    if depth is not None and depth > MOST_DEPTH * taps:
        raise BranchError(f"depth is {depth}: give at most {MOST_DEPTH} times the {taps} taps of the kernel")
    if depth is not None and depth < taps:
        return f"depth {depth} is less than the {taps} taps of its kernel, and could not give every kernel"
    return None
