"""Operations through which a per-channel scale passes unchanged: op(v (.) x) = v' (.) op(x), with v' a rearranged v.

``passed`` follows the scale from an operand to the result, ``passed_back`` from the result to the operand; both
raise ``DoesNotCommuteError`` where the identity does not hold. What is not named here does not commute.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stripefold.graph.graph import Node
from stripefold.graph.operations import names
from stripefold.graph.patterns import Shape, aligned, regrouped, varies

_RESHAPES = names("view reshape _unsafe_view _reshape_alias flatten unflatten squeeze unsqueeze view_as")
_SAME = names("clone contiguous alias detach _to_copy to lift_fresh neg dropout feature_dropout alpha_dropout")
_AVERAGES = names("mean sum")
_EXTREMES = names("amax amin")
_POOLS = {
    name: dims
    for dims in (1, 2, 3)
    for name in (f"avg_pool{dims}d", f"_adaptive_avg_pool{dims}d", f"adaptive_avg_pool{dims}d")
}
_MAX_POOLS = {
    name: dims
    for dims in (1, 2, 3)
    for name in (f"max_pool{dims}d", f"max_pool{dims}d_with_indices", f"adaptive_max_pool{dims}d")
}
_PADS = frozenset(
    {"constant_pad_nd", *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))}
)
_UPSAMPLES = names(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"
)
# f(v x) = v f(x) for v >= 0 only.
RECTIFIERS = names("relu leaky_relu _prelu_kernel prelu abs rrelu")
# Operations inside a layer that neither hinder a scale of its output nor need v >= 0.
_INSIDE_NORMS = (
    names("native_layer_norm layer_norm native_group_norm group_norm convolution linear addmm mm matmul")
    | _RESHAPES
    | _SAME
    | names("permute transpose")
)


class DoesNotCommuteError(Exception):
    """A scale does not pass this operation; the message is the reason, in words."""


def needs_nonnegative(node: Node) -> bool:
    """Whether the scale passes this operation only where no entry is negative."""
    clamped = node.name in ("clamp", "clamp_min", "threshold")
    return node.name in RECTIFIERS | _EXTREMES or node.name in _MAX_POOLS or clamped


def passed(node: Node, before: Shape, pattern: Tensor) -> Tensor:
    """The pattern of an operation's result.

    Args:
        node: the operation; one operand is scaled, and any other is a constant.
        before: shape of the scaled operand.
        pattern: its pattern.

    Raises:
        DoesNotCommuteError: the operation does not commute with this scale.
    """
    if node.name in _RESHAPES:
        return regrouped(pattern, before, node.shape)
    if node.name in ("permute", "transpose", "t"):
        return pattern.permute(_permutation(node, len(before)))
    if node.name in ("expand", "expand_as"):
        return aligned(pattern, len(node.shape))
    if node.name in _AVERAGES | _EXTREMES:
        dims = _reduced(node, len(before), pattern)
        keep = len(node.shape) == len(before)
        return pattern if keep else pattern.reshape([s for d, s in enumerate(pattern.shape) if d not in dims])
    if node.name in ("slice", "select"):
        return _picked(node, before, pattern)
    _check_in_place(node, before, pattern)
    return pattern


def passed_back(node: Node, before: Shape, pattern: Tensor) -> Tensor:
    """The pattern that an operation's operand must have for its result to have this one.

    Takes the arguments of ``passed``, with the result's pattern, and raises the same error.
    """
    if node.name in _RESHAPES:
        return regrouped(pattern, node.shape, before)
    if node.name in ("permute", "transpose", "t"):
        order = _permutation(node, len(before))
        return pattern.permute([order.index(dim) for dim in range(len(order))])
    if node.name in ("expand", "expand_as"):
        return _shrunk(pattern, before)
    if node.name in _AVERAGES | _EXTREMES:
        reduced = _dims(node, len(before))
        if len(node.shape) != len(before):
            sizes = iter(pattern.shape)
            pattern = pattern.reshape([1 if dim in reduced else next(sizes) for dim in range(len(before))])
        _reduced(node, len(before), pattern)
        return pattern
    if node.name == "slice" and not varies(pattern, [node.arguments["dim"] % len(before)]):
        return pattern  # positions are cut off, such as the padding of windows
    _check_in_place(node, before, pattern)
    return pattern


def hindrance_inside(inner: Sequence[str]) -> tuple[str | None, bool]:
    """What in a layer with an activation inside keeps a scale of its output from its affine part.

    Args:
        inner: names of the operations that ran inside the layer.

    Returns:
        The first operation that does not commute, or None; and whether the rest needs v >= 0.
    """
    rest = [name for name in inner if name not in _INSIDE_NORMS and "batch_norm" not in name]
    return next((name for name in rest if name not in RECTIFIERS), None), bool(rest)


def _permutation(node: Node, rank: int) -> list[int]:
    order = list(range(rank))
    if node.name == "permute":
        return [int(dim) % rank for dim in node.arguments["dims"]]
    first, second = (0, 1) if node.name == "t" else (int(node.arguments[key]) % rank for key in ("dim0", "dim1"))
    if rank > 1:
        order[first], order[second] = order[second], order[first]
    return order


def _shrunk(pattern: Tensor, before: Shape) -> Tensor:
    """The pattern before an expansion: an element that is spread over an axis carries one entry only."""
    extra = pattern.dim() - len(before)
    grown = [extra + dim for dim, size in enumerate(before) if size == 1]
    if varies(pattern, [*range(extra), *grown]):
        raise DoesNotCommuteError("one element is expanded over channels that are scaled differently")
    return pattern.reshape(pattern.shape[extra:])


def _dims(node: Node, rank: int) -> set[int]:
    given = node.arguments.get("dim")
    if isinstance(given, int):
        given = [given]
    return {int(dim) % rank for dim in given} if given else set(range(rank))


def _reduced(node: Node, rank: int, pattern: Tensor) -> set[int]:
    dims = _dims(node, rank)
    if varies(pattern, sorted(dims)):
        raise DoesNotCommuteError(f"{node.name!r} in {place(node)} mixes the channels")
    return dims


def _picked(node: Node, before: Shape, pattern: Tensor) -> Tensor:
    """A slice or a single index along one axis."""
    dim = int(node.arguments["dim"]) % len(before)
    if node.name == "select":
        entry = pattern.narrow(dim, int(node.arguments["index"]) % before[dim] if pattern.shape[dim] > 1 else 0, 1)
        return entry.squeeze(dim)
    if pattern.shape[dim] == 1:
        return pattern
    start, stop, step = (node.arguments[key] for key in ("start", "end", "step"))
    return pattern.movedim(dim, 0)[slice(start, stop, step)].movedim(0, dim)


def _check_in_place(node: Node, before: Shape, pattern: Tensor) -> None:
    """Operations that leave every element's channel where it is."""
    rank = len(before)
    touched: list[int] | None = None
    if node.name in _SAME or node.name in RECTIFIERS:
        touched = []
    elif node.name in _POOLS or node.name in _MAX_POOLS:
        dims = (_POOLS | _MAX_POOLS)[node.name]
        touched = list(range(rank - dims, rank))
    elif node.name in _PADS:
        touched = _padded(node, rank)
    elif node.name in _UPSAMPLES:
        touched = list(range(2, rank))
    elif node.name in ("roll", "flip"):
        # Without dimensions a roll goes over all elements as one row.
        touched = [int(dim) % rank for dim in node.arguments["dims"]] or list(range(rank))
    elif node.name in ("clamp", "clamp_min", "threshold"):
        touched = [] if _is_relu(node) else None
    if touched is None:
        raise DoesNotCommuteError(f"{node.name!r} in {place(node)} does not commute with a per-channel scale")
    if varies(pattern, touched) or len(node.shape) != rank:
        raise DoesNotCommuteError(f"{node.name!r} in {place(node)} mixes the channels")


def _padded(node: Node, rank: int) -> list[int] | None:
    if node.arguments.get("value", 0) != 0:
        return None  # padding with anything but 0 adds what is not scaled
    amounts = node.arguments["pad"] if node.name == "constant_pad_nd" else node.arguments["padding"]
    return [rank - 1 - k // 2 for k, amount in enumerate(amounts) if amount]


def _is_relu(node: Node) -> bool:
    """``clamp(min=0)`` without a maximum, and ``threshold(0, 0)``; limits that are tensors are inputs of the node."""
    given = node.arguments
    if node.name == "threshold":
        return bool(given["threshold"] == 0 and given["value"] == 0)
    return len(node.inputs) == 1 and given.get("min") == 0 and given.get("max") is None


def place(node: Node) -> str:
    """Where an operation runs, in words."""
    return repr(node.where) if node.where else "the model itself"
