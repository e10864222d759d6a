"""Which entry of a per-channel scale each element of a value carries, followed through operations that move elements.

A *pattern* is an integer tensor that broadcasts to the value's shape: same rank, size 1 on every axis along which it
does not vary. An entry is a position in v; -1 marks elements that are not scaled. Moving the pattern as the operation
moves the elements says exactly where the scale has gone: through a flattening, a concatenation or a channel shuffle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

NOT_SCALED = -1
Shape = tuple[int, ...]


def pattern_along(shape: Shape, axis: int) -> Tensor:
    """The pattern of v on one axis of a value: 0, 1, 2 ... along it, the same everywhere else."""
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    return torch.arange(shape[axis], device="cpu").view(sizes)


def varies(pattern: Tensor, axes: Sequence[int]) -> bool:
    """Whether the pattern differs along any of these axes."""
    return any(pattern.shape[axis] > 1 for axis in axes)


def regrouped(pattern: Tensor, before: Shape, after: Shape) -> Tensor:
    """The pattern of a value that is reshaped in row-major order.

    Args:
        pattern: of the value, broadcasts to ``before``.
        before: the value's shape.
        after: its new shape, as many elements.
    """
    expanded, shape = [1] * len(before), [1] * len(after)
    for old, new in _groups(before, after):
        if varies(pattern, old):
            for axis in old:
                expanded[axis] = before[axis]
            for axis in new:
                shape[axis] = after[axis]
    return pattern.expand(expanded).reshape(shape)


def aligned(pattern: Tensor, rank: int) -> Tensor:
    """The pattern with leading axes added, as broadcasting adds them."""
    return pattern.reshape((1,) * (rank - pattern.dim()) + tuple(pattern.shape))


def concatenated(patterns: Sequence[Tensor | None], shapes: Sequence[Shape], axis: int) -> Tensor:
    """The pattern of a concatenation; None stands for an operand that is not scaled.

    ``torch.cat`` passes over operands of shape (0,), whatever the rank of the others.
    """
    rank = max(len(shape) for shape in shapes)
    there = [k for k, shape in enumerate(shapes) if len(shape) == rank]
    patterns, shapes = [patterns[k] for k in there], [shapes[k] for k in there]
    full = [torch.full((1,) * rank, NOT_SCALED, device="cpu") if p is None else p for p in patterns]
    if all(p.shape[axis] == 1 for p in full) and all(torch.equal(p, full[0]) for p in full):
        return full[0]
    sizes = [max(p.shape[dim] for p in full) for dim in range(rank)]
    pieces = []
    for piece, shape in zip(full, shapes, strict=True):
        sizes[axis] = shape[axis]
        pieces.append(piece.expand(sizes))
    return torch.cat(pieces, axis)


def index_along(pattern: Tensor, shape: Shape, axis: int) -> tuple[int, ...] | None:
    """The entry of v that each channel of a value carries, or None where it varies on other axes too."""
    if varies(pattern, [dim for dim in range(len(shape)) if dim != axis]):
        return None
    return tuple(pattern.flatten().expand(shape[axis]).tolist())


def _groups(before: Shape, after: Shape) -> Iterator[tuple[range, range]]:
    """The smallest runs of axes that hold the same elements before and after a reshape."""
    if math.prod(before) != math.prod(after) or not math.prod(before):
        raise ValueError(f"{before} does not reshape to {after}")
    i = j = 0
    while i < len(before) or j < len(after):
        old, new, left, right = i, j, 1, 1
        while left != right or (i, j) == (old, new):
            if i < len(before) and (left <= right or j == len(after)):
                left *= before[i]
                i += 1
            else:
                right *= after[j]
                j += 1
        yield range(old, i), range(new, j)
