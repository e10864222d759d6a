"""Dilated re-parameterisation: a large kernel and small dilated ones, each with a BatchNorm.

A dilated kernel is a sparse large one, so a branch of few taps covers a wide range.

Source: UniRepLKNet, Ding et al. 2024, section 3.1 and the sizes of its published code.
"""

from __future__ import annotations

from collections.abc import Sequence

from stripefold.branches.base import Branch
from stripefold.branches.geometry import ConvGeometry
from stripefold.branches.parts import ConvolutionBranch
from stripefold.errors import BranchError

Kernels = Sequence[Sequence[int]]
# Size of the large kernel -> (size, dilation) of each branch beside it.
PAPER: dict[int, Kernels] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}


def build(grid: ConvGeometry, *, kernels: Kernels | None = None) -> dict[str, Branch]:
    """The branches.

    Args:
        grid: of the convolution.
        kernels: (size, dilation) of each small kernel; None is the paper's choice for the grid's size.
    """
    branches: dict[str, Branch] = {"main": ConvolutionBranch(grid)}
    for size, dilation in _kernels(grid, kernels):
        branches[f"size{size}_dilation{dilation}"] = ConvolutionBranch(grid, grid.centred(size, dilation))
    return branches


def why_unsupported(grid: ConvGeometry, *, kernels: Kernels | None = None) -> str | None:
    """Why a grid cannot have these branches.

    Raises:
        BranchError: ``kernels`` is no list of different (size, dilation).
    """
    if kernels is not None:
        _check(kernels)
    chosen = _kernels(grid, kernels)
    if not chosen:
        return f"no dilated kernels are published for a kernel of {grid.size}: give options={{'kernels': ...}}"
    for size, dilation in chosen:
        if (size - 1) * dilation + 1 > _shorter_side(grid):
            return f"a kernel of {size} with dilation {dilation} is larger than its own {grid.size}"
    return None


def _kernels(grid: ConvGeometry, kernels: Kernels | None) -> Kernels:
    """The choice for this grid: by its shorter side, and for an even one by the odd number below it."""
    side = _shorter_side(grid)
    return PAPER.get(side - 1 + side % 2, ()) if kernels is None else kernels


def _shorter_side(grid: ConvGeometry) -> int:
    return min((size for size in grid.size if size > 1), default=1)


def _check(kernels: object) -> None:
    pairs = list(kernels) if isinstance(kernels, Sequence) and not isinstance(kernels, str) else []
    plain = [tuple(pair) for pair in pairs if isinstance(pair, Sequence) and not isinstance(pair, str)]
    numbers = all(type(number) is int and number > 0 for pair in plain for number in pair)
    if not pairs or len(plain) != len(pairs) or not numbers or any(len(pair) != 2 for pair in plain):
        raise BranchError(f"kernels is {kernels!r}: give a list of (size, dilation), such as [(5, 1), (3, 2)]")
    if len(set(plain)) != len(plain):
        raise BranchError(f"kernels is {kernels!r}: one (size, dilation) stands there twice")
