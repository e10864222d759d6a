"""Follow the channel axis of a layer's output through operations that move it."""

from __future__ import annotations

from stripefold.surgery.graph import Node
from stripefold.surgery.operations import is_batch_norm

_CHANNELS_SECOND = frozenset({"convolution", "native_group_norm", "group_norm"})


def channel_axis(layer: Node) -> int:
    """The channel axis of what a layer returned, from 0 up.

    It is 1 for everything that convolves or normalises per channel, and where dimensions were permuted on the way in
    and out (a LayerNorm over channels); otherwise it is the last.
    """
    rank = len(layer.shape)
    second = any(name in _CHANNELS_SECOND or is_batch_norm(name) for name in layer.inner)
    permuted = "permute" in layer.inner and any("norm" in name for name in layer.inner)
    return 1 if (second or permuted) and rank > 1 else max(rank - 1, 0)


def axis_after(before: Node, node: Node, axis: int) -> int | None:
    """Where an operation puts the channel axis, or None where the channels have no axis of their own any more."""
    rank = len(before.shape)
    numbers = [argument for argument in node.arguments if isinstance(argument, (int, list, tuple))]
    if node.name == "permute" and numbers and isinstance(numbers[0], (list, tuple)):
        return [dim % rank for dim in numbers[0]].index(axis)
    if node.name == "transpose" and len(numbers) == 2:
        first, second = (dim % rank for dim in numbers if isinstance(dim, int))
        return {first: second, second: first}.get(axis, axis)
    if node.name == "t":
        return rank - 1 - axis
    if node.name == "cat" or (len(node.shape) == rank and node.shape[axis] == before.shape[axis]):
        return axis
    return _by_shape(before.shape, node.shape, axis)


def _by_shape(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> int | None:
    """For reshapes: what stands before the axis, or behind it, stays as it is.

    An instance normalisation joins samples and channels, (N, C, ...) -> (1, N * C, ...), for a batch normalisation.
    """
    if axis == 1 and after[:2] == (1, before[0] * before[1]):
        return 1
    if before[: axis + 1] == after[: axis + 1]:
        return axis
    behind = len(before) - axis
    return len(after) - behind if before[axis:] == after[-behind:] else None
