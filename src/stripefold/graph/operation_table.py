"""One table: what every operation does to a per-channel scale, to a shift of the channels, and to the channel axis.

A scale passes an operation where ``op(v (.) x) = v' (.) op(x)``, a shift where ``op(x + t) = op(x) + f t'``; v' and t'
are rearranged as the operation moves elements (``Rearrangement``, in both directions), f is a number. ``scale`` and
``shift`` answer for one recorded call, by its arguments: ``Passes``, with its condition, or the reason why not. What
the table does not name stops both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from stripefold.graph.graph import Node
from stripefold.graph.operation_names import INSIDE_NORMS
from stripefold.graph.patterns import Shape, aligned, regrouped, varies

Change = Literal["scale", "shift"]
OperandFamily = Literal["one operand", "join", "sum", "product"]


class StoppedError(Exception):
    """A scale or a shift does not go on here, and why: see ``absorption.Refusal``."""

    def __init__(self, why: str, *, unseen: bool = False) -> None:
        super().__init__(why)
        self.why, self.unseen = why, unseen


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How a change passes an operation.

    Attributes:
        nonnegative: only where no entry of the scale is negative.
        factor: what multiplies a shift on the way from the operand to the result.
    """

    nonnegative: bool = False
    factor: float = 1.0


Answer = Passes | str
Question = Callable[[Node], Answer]
Move = Callable[[Node, Shape, Tensor], Tensor]


class Rearrangement(NamedTuple):
    """How an operation moves elements, as functions of (node, shape of the operand, pattern).

    Attributes:
        ahead: the pattern of the operand -> that of the result.
        back: the pattern of the result -> that of the operand.
    """

    ahead: Move
    back: Move


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One row of the table.

    Attributes:
        layout: how elements move.
        scale: whether a scale of the channels passes a call, or why not.
        shift: the same for a shift.
        family: whether several operands may carry the change, and how they meet.
    """

    layout: Rearrangement
    scale: Question
    shift: Question
    family: OperandFamily = "one operand"

    def passes(self, change: Change, node: Node) -> Answer:
        """How a change passes a call of the operation, or why it does not."""
        return self.scale(node) if change == "scale" else self.shift(node)


def location(node: Node) -> str:
    """Where an operation runs, in words."""
    return repr(node.where) if node.where else "the model itself"


def operation(node: Node, change: Change) -> Operation:
    """The row of a recorded operation.

    Raises:
        StoppedError: the table does not know it.
    """
    row = OPERATIONS.get(node.name)
    if row is None:
        raise StoppedError(f"{node.name!r} in {location(node)} {_STOPS[change]}")
    return row


def check_passes(node: Node, change: Change) -> Passes:
    """How a change passes a recorded operation.

    Raises:
        StoppedError: it does not.
    """
    answer = operation(node, change).passes(change, node) if 0 not in node.shape else "it is empty on this example"
    if isinstance(answer, str):
        raise StoppedError(f"{node.name!r} in {location(node)} {_STOPS[change]}{answer and f': {answer}'}")
    return answer


_STOPS: dict[Change, str] = {
    "scale": "does not commute with a per-channel scale",
    "shift": "does not pass on what is added to its operand",
}

# Layouts: how operations move elements.


def _mixes(node: Node) -> StoppedError:
    return StoppedError(f"{node.name!r} in {location(node)} mixes the channels")


def _stays_on(touched: Callable[[Node, int], Sequence[int]]) -> Rearrangement:
    """Every element keeps its channel; along the touched axes neighbours are mixed."""

    def move(node: Node, before: Shape, pattern: Tensor) -> Tensor:
        if varies(pattern, touched(node, len(before))) or len(node.shape) != len(before):
            raise _mixes(node)
        return pattern

    return Rearrangement(move, move)


def _permutation(node: Node, rank: int) -> list[int]:
    order = list(range(rank))
    if node.name == "permute":
        return [int(dim) % rank for dim in node.arguments["dims"]]
    first, second = (0, 1) if node.name == "t" else (int(node.arguments[key]) % rank for key in ("dim0", "dim1"))
    if rank > 1:
        order[first], order[second] = order[second], order[first]
    return order


def _permuted_back(node: Node, before: Shape, pattern: Tensor) -> Tensor:
    order = _permutation(node, len(before))
    return pattern.permute([order.index(dim) for dim in range(len(order))])


def _shrunk(node: Node, before: Shape, pattern: Tensor) -> Tensor:
    """Before an expansion: an element that is spread over an axis carries one entry only."""
    extra = pattern.dim() - len(before)
    grown = [extra + dim for dim, size in enumerate(before) if size == 1]
    if varies(pattern, [*range(extra), *grown]):
        raise StoppedError("one element is expanded over channels that are scaled differently")
    return pattern.reshape(pattern.shape[extra:])


def _dims(node: Node, rank: int) -> list[int]:
    given = node.arguments.get("dim")
    given = [given] if isinstance(given, int) else given
    return sorted({int(dim) % rank for dim in given}) if given else list(range(rank))


def _reduced(node: Node, before: Shape, pattern: Tensor) -> Tensor:
    dims = _dims(node, len(before))
    if varies(pattern, dims):
        raise _mixes(node)
    keep = len(node.shape) == len(before)
    return pattern if keep else pattern.reshape([size for dim, size in enumerate(pattern.shape) if dim not in dims])


def _unreduced(node: Node, before: Shape, pattern: Tensor) -> Tensor:
    dims = _dims(node, len(before))
    if len(node.shape) != len(before):
        sizes = iter(pattern.shape)
        pattern = pattern.reshape([1 if dim in dims else next(sizes) for dim in range(len(before))])
    if varies(pattern, dims):
        raise _mixes(node)
    return pattern


def _sliced(node: Node, before: Shape, pattern: Tensor) -> Tensor:
    dim = int(node.arguments["dim"]) % len(before)
    if pattern.shape[dim] == 1:
        return pattern
    cut = slice(*(node.arguments[key] for key in ("start", "end", "step")))
    return pattern.movedim(dim, 0)[cut].movedim(0, dim)


def _selected(node: Node, before: Shape, pattern: Tensor) -> Tensor:
    dim = int(node.arguments["dim"]) % len(before)
    entry = int(node.arguments["index"]) % before[dim] if pattern.shape[dim] > 1 else 0
    return pattern.select(dim, entry)


def _piece(node: Node, before: Shape, pattern: Tensor) -> Tensor:
    """One piece of a split."""
    axis = int(node.arguments["dim"]) % len(before)
    if not varies(pattern, [axis]):
        return pattern
    if "split_size" in node.arguments:
        sizes = node.arguments["split_size"]
        start = node.position * int(sizes) if isinstance(sizes, int) else sum(sizes[: node.position])
    else:
        start = sum(node.arguments["split_sizes"][: node.position])
    return pattern.narrow(axis, start, node.shape[axis])


def _cut_back(node: Node, before: Shape, pattern: Tensor) -> Tensor:
    """Before positions are cut off; where channels are, what is left out would have to carry something, too."""
    if varies(pattern, [int(node.arguments["dim"]) % len(before)]):
        raise StoppedError(
            f"{node.name!r} in {location(node)} does not commute backward: it takes some of the channels"
        )
    return pattern


def _unselected(node: Node, before: Shape, pattern: Tensor) -> Tensor:
    return pattern.unsqueeze(int(node.arguments["dim"]) % len(before))


def _padded(node: Node, rank: int) -> list[int]:
    amounts = node.arguments["pad"] if node.name == "constant_pad_nd" else node.arguments["padding"]
    return [rank - 1 - k // 2 for k, amount in enumerate(amounts) if amount]


def _moved_along(node: Node, rank: int) -> list[int]:
    # Without dimensions a roll goes over all elements as one row.
    return [int(dim) % rank for dim in node.arguments["dims"]] or list(range(rank))


def _last(dims: int) -> Rearrangement:
    return _stays_on(lambda node, rank: range(rank - dims, rank))


_IN_PLACE = _stays_on(lambda node, rank: ())
_REGROUPED = Rearrangement(
    lambda node, before, pattern: regrouped(pattern, before, node.shape),
    lambda node, before, pattern: regrouped(pattern, node.shape, before),
)
_PERMUTED = Rearrangement(
    lambda node, before, pattern: pattern.permute(_permutation(node, len(before))), _permuted_back
)
_EXPANDED = Rearrangement(lambda node, before, pattern: aligned(pattern, len(node.shape)), _shrunk)
_REDUCED = Rearrangement(_reduced, _unreduced)
_SLICED, _SPLIT = Rearrangement(_sliced, _cut_back), Rearrangement(_piece, _cut_back)
_SELECTED = Rearrangement(_selected, _unselected)
_BROADCAST = Rearrangement(
    lambda node, before, pattern: aligned(pattern, len(node.shape)), lambda node, before, pattern: pattern
)

# Conditions.


def _always(node: Node) -> Answer:
    return Passes()


def _nonnegative(node: Node) -> Answer:
    """f(v x) = v f(x) for v >= 0 only."""
    return Passes(nonnegative=True)


def _never(why: str) -> Question:
    return lambda node: why


def _times(factor: float) -> Question:
    return lambda node: Passes(factor=factor)


def _averages(node: Node) -> Answer:
    """A pooling that counts no padding and divides by how many entries there are."""
    given = node.arguments  # the pooling of one dimension has no divisor of its own
    if any(given["padding"]) and given["count_include_pad"]:
        return "padded zeros are averaged, too"
    return Passes() if given.get("divisor_override") is None else "it divides by another number"


def _zeros(node: Node) -> Answer:
    return Passes() if not node.arguments.get("value", 0) else "padding with anything but 0 adds what is not scaled"


def _rectifies(node: Node) -> Answer:
    """``clamp(min=0)`` without a maximum, and ``threshold(0, 0)``; limits that are tensors are inputs of the node."""
    given = node.arguments
    if node.name == "threshold":
        is_relu = given["threshold"] == 0 and given["value"] == 0
    else:
        is_relu = len(node.inputs) == 1 and given.get("min") == 0 and given.get("max") is None
    return Passes(nonnegative=True) if is_relu else "its limits are no multiples of the scale"


def has_number(node: Node) -> bool:
    """Whether a sum or product has a number among its arguments, as ``x * 3`` has one."""
    return node.arguments.get("other") is not None


def _scale_of_product(node: Node) -> Answer:
    return Passes() if node.arguments.get("rounding_mode") is None else "it rounds"


def _shift_of_product(node: Node) -> Answer:
    factor = node.arguments.get("other")
    if not isinstance(factor, (int, float)) or node.arguments.get("rounding_mode") is not None:
        return "it multiplies what is added, too"
    if factor == 0:
        return "it multiplies by 0" if node.name == "mul" else "it divides by 0"
    return Passes(factor=factor if node.name == "mul" else 1 / factor)


def _scale_of_sum(node: Node) -> Answer:
    return "it adds a number" if has_number(node) else Passes()


_ZEROS_ADDED = _never("the zeros that are added would have to be shifted, too")
_RECTIFIED = _never("")


def _row(
    listed: str,
    layout: Rearrangement,
    scale: Question = _always,
    shift: Question = _always,
    family: OperandFamily = "one operand",
) -> dict[str, Operation]:
    return {name: Operation(layout=layout, scale=scale, shift=shift, family=family) for name in listed.split()}


def _spatial(dims: int) -> dict[str, Operation]:
    """Poolings, paddings and interpolations over the last axes."""
    last, pads = _last(dims), _stays_on(_padded)
    return {
        **_row(f"avg_pool{dims}d", last, _always, _averages),
        **_row(f"adaptive_avg_pool{dims}d" + f" _adaptive_avg_pool{dims}d" * (dims > 1), last),
        **_row(f"max_pool{dims}d max_pool{dims}d_with_indices adaptive_max_pool{dims}d", last, _nonnegative),
        **_row(f"reflection_pad{dims}d replication_pad{dims}d", pads),
        **_row(f"upsample_nearest{dims}d _upsample_nearest_exact{dims}d", last),
    }


OPERATIONS: dict[str, Operation] = {
    **_row("view reshape _unsafe_view _reshape_alias flatten unflatten squeeze unsqueeze view_as", _REGROUPED),
    **_row("permute transpose t", _PERMUTED),
    **_row("expand expand_as", _EXPANDED),
    **_row("slice", _SLICED),
    **_row("select", _SELECTED),
    **_row("split split_with_sizes unsafe_split unsafe_split_with_sizes", _SPLIT),
    **_row("clone contiguous alias detach _to_copy to lift_fresh", _IN_PLACE),
    **_row("roll flip", _stays_on(_moved_along)),
    **_row("neg", _IN_PLACE, _always, _times(-1.0)),
    **_row("dropout feature_dropout alpha_dropout", _IN_PLACE, _always, _never("it drops what is added, too")),
    **_row("mean", _REDUCED),
    **_row("sum", _REDUCED, _always, _never("it adds it several times")),
    **_row("amax amin", _REDUCED, _nonnegative),
    **_spatial(1),
    **_spatial(2),
    **_spatial(3),
    **_row("upsample_linear1d", _last(1)),
    **_row("upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa", _last(2)),
    **_row("upsample_trilinear3d", _last(3)),
    **_row("constant_pad_nd", _stays_on(_padded), _zeros, _ZEROS_ADDED),
    **_row("relu leaky_relu _prelu_kernel prelu abs rrelu_with_noise", _IN_PLACE, _nonnegative, _RECTIFIED),
    **_row("clamp clamp_min threshold", _IN_PLACE, _rectifies, _RECTIFIED),
    **_row("cat concat concatenate", _BROADCAST, family="join"),
    **_row("add sub", _BROADCAST, _scale_of_sum, family="sum"),
    **_row("mul div", _BROADCAST, _scale_of_product, _shift_of_product, family="product"),
}


def hindrance_inside(inner: Sequence[str]) -> tuple[str | None, bool]:
    """What in a layer with an activation inside keeps a scale of its output from its affine part.

    Args:
        inner: names of the operations that ran inside the layer.

    Returns:
        The first operation that does not commute, or None; and whether the rest needs v >= 0.
    """
    rest = [name for name in inner if name not in INSIDE_NORMS and "batch_norm" not in name]
    rectifiers = {name for name, row in OPERATIONS.items() if row.scale is _nonnegative and row.shift is _RECTIFIED}
    return next((name for name in rest if name not in rectifiers), None), bool(rest)


def joining_axis(node: Node) -> int:
    """The axis of a concatenation."""
    return int(node.arguments["dim"]) % len(node.shape)


def summand_factors(node: Node) -> list[float]:
    """What multiplies each operand of a sum: ``alpha`` and the sign of a difference."""
    alpha = node.arguments.get("alpha", 1)
    if not isinstance(alpha, (int, float)):
        raise StoppedError(f"{node.name!r} in {location(node)} has a factor that is no real number: {alpha}")
    second = float(alpha)
    return [1.0, -second if node.name == "sub" else second][: len(node.inputs)]
