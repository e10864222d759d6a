"""ACNet's asymmetric convolution block: the kernel and one bar along each axis, each with a BatchNorm.

Source: ACNet: Strengthening the Kernel Skeletons, Ding et al. 2019, figure 2. Published for square kernels of two axes;
here for two or three axes.
"""

from __future__ import annotations

from stripefold.branches.base import Branch
from stripefold.branches.geometry import ConvGeometry
from stripefold.branches.parts import ConvolutionBranch

_NAMES = {2: ("vertical", "horizontal"), 3: ("depth", "vertical", "horizontal")}


def build(grid: ConvGeometry) -> dict[str, Branch]:
    """The branches.

    Args:
        grid: of the convolution.
    """
    branches: dict[str, Branch] = {"main": ConvolutionBranch(grid)}
    for axis, name in enumerate(_NAMES[grid.axes]):
        if grid.size[axis] > 1:
            bar = [grid.size[axis] if axis == other else 1 for other in range(grid.axes)]
            branches[name] = ConvolutionBranch(grid, grid.centred(bar))
    return branches


def why_unsupported(grid: ConvGeometry) -> str | None:
    """Why a grid cannot have these branches."""
    if sum(size > 1 for size in grid.size) < 2:
        return f"its kernel {grid.size} is itself a bar: there is nothing asymmetric to add"
    return None
