"""A per-channel scale that moves against the flow, to the layers that make the scaled value."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from stripefold.graph.commuting import (
    DoesNotCommuteError,
    hindrance_inside,
    needs_nonnegative,
    passed_back,
    place,
)
from stripefold.graph.graph import Node
from stripefold.graph.operations import PRODUCTS
from stripefold.graph.scale_parts import JOINS, Search, adds_number, only_operand, pieces

Asked = dict[int, dict[int, Tensor]]
"""Value -> its users that carry the scale, each with the scale's pattern on the value."""


class BackwardSearch(Search):
    """From a value back to the layers whose output side takes its scale."""

    def go(self, start: int, user: int, pattern: Tensor) -> None:
        """Bring the scale of a value to the layers that make it.

        Args:
            start: the value.
            user: the node that may use it; every other user has to carry the scale, too.
            pattern: the scale's pattern on it.

        Raises:
            DoesNotCommuteError: it cannot go there.
        """
        self._settle({start: {user: pattern}})
        self.parts.reverse()  # into the order of computation

    def _settle(self, asked: Asked) -> None:
        """The latest value first: whoever uses it is settled by then, so paths that part and meet again are seen."""
        while asked:
            index = max(asked)
            pattern = self._agreed(index, asked.pop(index))
            node = self.graph.nodes[index]
            if node.kind == "layer":
                self._end(node, index, pattern)
            elif node.kind != "operation" or node.role != "activation":
                raise DoesNotCommuteError("what is scaled is no layer's output but the model's input, or a constant")
            elif node.name in PRODUCTS and index not in self.neutral:
                self._through_product(node, index, pattern, asked)
                return
            else:
                for source, piece in self._through(node, index, pattern):
                    asked.setdefault(source, {})[index] = piece

    def _agreed(self, index: int, asked: dict[int, Tensor]) -> Tensor:
        """The one pattern that all users of a value carry."""
        self.check_users(index, asked, "scaled")
        pattern, *rest = asked.values()
        if not all(bool((pattern == other).all()) for other in rest):
            raise DoesNotCommuteError("one value would have to carry two different scales")
        return pattern

    def _through(self, node: Node, index: int, pattern: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The operands that carry the scale of a result, each with its pattern."""
        if index in self.neutral:
            yield self.neutral[index], pattern
        elif node.name in ("add", "sub"):
            yield from ((source, pattern) for source in self._summands(node))
        elif node.name in JOINS:
            yield from pieces(self.graph, node, pattern)
        else:
            source = only_operand(self.graph, node)
            self.nonnegative |= needs_nonnegative(node)
            yield source, passed_back(node, self.graph.nodes[source].shape, pattern)

    def _through_product(self, node: Node, index: int, pattern: Tensor, asked: Asked) -> None:
        """v (a b) = (v a) b: any factor of full size may carry the scale; a divisor may not."""
        carriers = self.carriers(node.inputs[:1] if node.name == "div" else node.inputs, node)
        reasons = []
        for source in carriers if len(set(node.inputs)) == len(node.inputs) else ():
            before = list(self.parts), self.nonnegative, self.eval_only
            trial = {value: dict(users) for value, users in asked.items()}
            trial.setdefault(source, {})[index] = pattern
            try:
                return self._settle(trial)
            except DoesNotCommuteError as error:
                reasons.append(str(error))
                self.parts, self.nonnegative, self.eval_only = before
        raise DoesNotCommuteError(reasons[0] if reasons else f"{node.name!r} in {place(node)} has no factor to scale")

    def _summands(self, node: Node) -> list[int]:
        """v (a + b) = v a + v b: every summand carries the scale."""
        carriers = self.carriers(node.inputs, node)
        if len(carriers) != len(node.inputs) or adds_number(node):
            raise DoesNotCommuteError(f"{node.name!r} in {place(node)} adds what cannot carry the scale")
        return carriers

    def _end(self, node: Node, index: int, pattern: Tensor) -> None:
        takes = self.side(node, "output")
        self.check_only_result(node, index)
        if takes.activated:
            hindrance, rectified = hindrance_inside(node.inner)
            if hindrance is not None:
                raise DoesNotCommuteError(f"{hindrance!r} in {node.name!r} does not commute with a per-channel scale")
            self.nonnegative |= rectified
        self.end_at(node, "output", (node.shape, takes.axis), pattern)
