"""MobileOne: several copies of the kernel, a 1x1 convolution and the input itself, each with a BatchNorm.

Source: MobileOne: An Improved One Millisecond Mobile Backbone, Vasu et al. 2023, figure 3 (over-parameterisation k).
"""

from __future__ import annotations

from stripefold.branches.base import Branch
from stripefold.branches.geometry import ConvGeometry
from stripefold.branches.parts import ConvolutionBranch, IdentityBranch
from stripefold.errors import BranchError

MOST_COPIES = 256


def build(grid: ConvGeometry, *, copies: int = 4, identity: bool = True) -> dict[str, Branch]:
    """The branches.

    Args:
        grid: of the convolution.
        copies: the paper's k (4 in its smallest network, 1 in the others).
        identity: also the input itself, where it has the output's shape.
    """
    branches: dict[str, Branch] = {"main": ConvolutionBranch(grid)}
    branches |= {f"copy{index}": ConvolutionBranch(grid) for index in range(1, copies)}
    if set(grid.size) != {1}:
        branches["point"] = ConvolutionBranch(grid, grid.centred(1))
    if identity and grid.keeps_map:
        branches["identity"] = IdentityBranch(grid)
    return branches


def why_unsupported(grid: ConvGeometry, *, copies: int = 4, identity: bool = True) -> str | None:
    """No grid is refused; a number of copies may be.

    Raises:
        BranchError: ``copies`` is no whole number from 1 to ``MOST_COPIES``.
    """
    if isinstance(copies, bool) or not isinstance(copies, int) or not 1 <= copies <= MOST_COPIES:
        raise BranchError(f"copies is {copies!r}: give a whole number from 1 on, at most {MOST_COPIES}")
    return None
