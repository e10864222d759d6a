"""Where may a per-channel addition go, exactly? The value is y = x + t with t constant per channel.

Against the flow: x comes from a layer through operations that keep a shift of the channels, op(x + t) = op(x) + t', and
nothing else sees what lies between: the layer's bias takes t. Unlike a scale, a shift goes into *one* summand of a
sum, passes no rectifier, and does not pass zero padding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

from stripefold.graph.commuting import DoesNotCommuteError, passed_back, place
from stripefold.graph.graph import Graph, Node
from stripefold.graph.operations import WHOLE_VIEWS
from stripefold.graph.patterns import along
from stripefold.graph.scale_parts import JOINS, Reason, Search, Sides, Target, only_operand, pieces

_MOVES = frozenset({"_to_copy", "to", "lift_fresh", "slice", "roll", "flip"})
_MEANS = frozenset({"mean", "adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"})
_EXTREMES = frozenset(
    {"amax", "amin", *(f"max_pool{n}d{ending}" for n in (1, 2, 3) for ending in ("", "_with_indices"))}
)
_COPIES = frozenset({*(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))})
_INTERPOLATIONS = frozenset({"upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d"})
_KEEP = WHOLE_VIEWS | _MOVES | _MEANS | _EXTREMES | _COPIES | _INTERPOLATIONS


def averages_what_is_there(node: Node) -> bool:
    """Whether a pooling node averages, counts no padding and divides by how many there are."""
    if node.name not in ("avg_pool1d", "avg_pool2d", "avg_pool3d"):
        return False
    given = node.arguments  # the pooling of one dimension has no divisor of its own
    return not (any(given["padding"]) and given["count_include_pad"]) and given.get("divisor_override") is None


def shift_backward(
    graph: Graph,
    shifted: int,
    axis: int,
    *,
    addition: int,
    sides: Sides,
    ignoring: Collection[int],
    neutral: Mapping[int, int],
) -> Target | Reason:
    """Where the addition to a value goes: every part is a layer whose bias takes it.

    Args:
        graph: of a trace.
        shifted: the node x that is added to.
        axis: the channel axis of x.
        addition: the node y; any other user of x is in the way.
        sides: what the layers can take; a shift goes where a scale of the output goes.
        ignoring: nodes that lead nowhere (the indices of a maximum).
        neutral: node -> the operand that it passes on unchanged by now.
    """
    shape = graph.nodes[shifted].shape
    search = ShiftSearch(graph, sides, frozenset(ignoring), neutral)
    try:
        search.go(shifted, addition, along(shape, axis % len(shape)))
    except DoesNotCommuteError as error:
        return Reason(str(error))
    return search.target()


class ShiftSearch(Search):
    """From a value back to the layers whose bias takes what is added to it."""

    def go(self, index: int, user: int, pattern: Tensor) -> None:
        """Bring the addition to a value to the layers that make it.

        Args:
            index: the value.
            user: the only node that may use it.
            pattern: the addition's pattern on it.

        Raises:
            DoesNotCommuteError: it cannot go there.
        """
        self.check_users(index, (user,), "shifted")
        node = self.graph.nodes[index]
        if node.kind == "layer":
            self._end(node, index, pattern)
            return
        if node.kind != "operation" or node.role != "activation":
            raise DoesNotCommuteError("what is shifted is no layer's output but the model's input, or a constant")
        if node.name in ("add", "sub") and index not in self.neutral:
            self._through_sum(node, index, pattern)
            return
        for source, piece in self._through(node, index, pattern):
            self.go(source, index, piece)

    def _through(self, node: Node, index: int, pattern: Tensor) -> Iterator[tuple[int, Tensor]]:
        if index in self.neutral:
            yield self.neutral[index], pattern
        elif node.name in JOINS:
            yield from pieces(self.graph, node, pattern)
        elif node.name in _KEEP or averages_what_is_there(node):
            source = only_operand(self.graph, node)
            yield source, passed_back(node, self.graph.nodes[source].shape, pattern)
        else:
            raise DoesNotCommuteError(f"{node.name!r} in {place(node)} does not pass on what is added to its operand")

    def _through_sum(self, node: Node, index: int, pattern: Tensor) -> None:
        """(a + b) + t = (a + t) + b: any one summand of full size; never a subtrahend, or one with a factor."""
        plain = node.name == "add" and node.arguments["alpha"] == 1 and len(set(node.inputs)) == len(node.inputs)
        reasons = []
        for source in self.carriers(node.inputs if plain else node.inputs[:1], node):
            parts = list(self.parts)
            try:
                return self.go(source, index, pattern)
            except DoesNotCommuteError as error:
                reasons.append(str(error))
                self.parts = parts
        raise DoesNotCommuteError(reasons[0] if reasons else f"{node.name!r} in {place(node)} has no summand to shift")

    def _end(self, node: Node, index: int, pattern: Tensor) -> None:
        takes = self.side(node, "output")
        self.check_only_result(node, index)
        if takes.activated:
            raise DoesNotCommuteError(f"an activation in {node.name!r} stands behind its bias")
        self.end_at(node, "output", (node.shape, takes.axis), pattern)
