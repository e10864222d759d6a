"""A large kernel with a small one beside it, each with a BatchNorm.

Source: Scaling Up Your Kernels to 31x31 (RepLKNet), Ding et al. 2022, section 3, guideline 3.
"""

from __future__ import annotations

from stripefold.branches.base import Branch
from stripefold.branches.geometry import ConvGeometry
from stripefold.branches.parts import ConvolutionBranch
from stripefold.errors import BranchError


def build(grid: ConvGeometry, *, small: int = 5) -> dict[str, Branch]:
    """The branches.

    Args:
        grid: of the convolution.
        small: size of the small kernel.
    """
    return {"main": ConvolutionBranch(grid), "small": ConvolutionBranch(grid, grid.centred(small))}


def why_unsupported(grid: ConvGeometry, *, small: int = 5) -> str | None:
    """Why a grid cannot have these branches.

    Raises:
        BranchError: ``small`` is no whole number from 1 on.
    """
    if isinstance(small, bool) or not isinstance(small, int) or small < 1:
        raise BranchError(f"small is {small!r}: give a whole number from 1 on")
    if all(size == 1 or size > small for size in grid.size) and set(grid.size) != {1}:
        return None
    return f"its kernel {grid.size} is not larger than the small one of {small}: give options={{'small': ...}}"
