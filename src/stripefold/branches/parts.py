"""The branches that several kinds of block share: a convolution with its BatchNorm, and the input with one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stripefold.algebra.kernels import Merged, embed_kernel, identity_kernel, merge_norm
from stripefold.branches.base import Branch, PrimaryBranch, bare, norm_affine
from stripefold.branches.geometry import ConvGeometry, KernelWindow


class ConvolutionBranch(PrimaryBranch):
    """A convolution of any window of the grid, then a BatchNorm.

    Args:
        grid: of the block.
        window: which taps it has; None is the whole kernel.
        outputs: its channels; None is the block's.
    """

    def __init__(self, grid: ConvGeometry, window: KernelWindow | None = None, *, outputs: int | None = None) -> None:
        super().__init__()
        self.grid, self.window = grid, window or grid.whole
        self.conv = grid.convolution(self.window, outputs=outputs)
        self.bn = grid.norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *map) -> (N, C_out, *map)."""
        result: Tensor = self.bn(self.conv(self.grid.frame(x, self.window)))
        return result

    def merged(self) -> Merged:
        """See ``Branch``."""
        weight: Any = self.conv.weight
        kernel = embed_kernel(weight, self.grid.size, self.window.offset, self.window.step)
        return merge_norm(kernel, None, *norm_affine(self.bn))

    @torch.no_grad()
    def zero_init_(self) -> None:
        """See ``Branch``: the BatchNorm's gain and shift are 0, and the gain has a gradient."""
        silence_norm_(self.bn)

    @torch.no_grad()
    def load_conv_(self, convolution: Any) -> None:
        """See ``PrimaryBranch``: the bias becomes the BatchNorm's shift."""
        self.conv._parameters["weight"] = convolution.weight
        if convolution.bias is not None:
            norm: Any = self.bn
            norm.bias.copy_(convolution.bias)
            norm.bias.requires_grad_(convolution.bias.requires_grad)

    @torch.no_grad()
    def init_identity_(self) -> None:
        """See ``PrimaryBranch``: the BatchNorm's gain undoes its division."""
        norm: Any = self.bn
        norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())

    def flags(self) -> tuple[bool, bool]:
        """See ``PrimaryBranch``."""
        weight, bias = bare(self.conv)._parameters["weight"], bare(self.bn)._parameters["bias"]
        assert weight is not None
        assert bias is not None
        return weight.requires_grad, bias.requires_grad


class IdentityBranch(Branch):
    """The input itself (what the middle tap reads of it), then a BatchNorm; for grids that keep the map."""

    def __init__(self, grid: ConvGeometry) -> None:
        super().__init__()
        self.grid = grid
        self.bn = grid.norm()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *map) -> (N, C, *map)."""
        result: Tensor = self.bn(self.grid.subsample(x))
        return result

    def merged(self) -> Merged:
        """See ``Branch``."""
        grid, (scale, shift) = self.grid, norm_affine(self.bn)
        point = grid.centred(1)
        kernel = identity_kernel(grid.outputs, grid.groups, grid.size, point.offset, device=scale.device)
        return merge_norm(kernel, None, scale, shift)

    @torch.no_grad()
    def zero_init_(self) -> None:
        """See ``Branch``."""
        silence_norm_(self.bn)


def silence_norm_(norm: nn.Module) -> None:
    """Set a BatchNorm's gain and shift to 0."""
    for tensor in norm.parameters():
        tensor.zero_()
