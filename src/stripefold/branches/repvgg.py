"""RepVGG: the kernel, a 1x1 convolution and the input itself, each with a BatchNorm.

Source: RepVGG: Making VGG-style ConvNets Great Again, Ding et al. 2021, figure 4. Published for 3x3 kernels; here for
every kernel larger than 1. The 1x1 convolution and the input sit on the middle tap.
"""

from __future__ import annotations

from stripefold.branches.base import Branch
from stripefold.branches.geometry import ConvGeometry
from stripefold.branches.parts import ConvolutionBranch, IdentityBranch


def build(grid: ConvGeometry, *, identity: bool = True) -> dict[str, Branch]:
    """The branches.

    Args:
        grid: of the convolution.
        identity: also the input itself, where it has the output's shape (the paper's rule).
    """
    branches: dict[str, Branch] = {
        "main": ConvolutionBranch(grid),
        "point": ConvolutionBranch(grid, grid.centred(1)),
    }
    if identity and grid.keeps_map:
        branches["identity"] = IdentityBranch(grid)
    return branches


def why_unsupported(grid: ConvGeometry, *, identity: bool = True) -> str | None:
    """Why a grid cannot have these branches."""
    return "its kernel has one tap, in which a 1x1 branch adds nothing" if set(grid.size) == {1} else None
