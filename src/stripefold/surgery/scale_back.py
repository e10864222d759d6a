"""A per-channel scale that moves against the flow, to the layers that make the scaled value."""

from __future__ import annotations

import math

from torch import Tensor

from stripefold.surgery.commuting import (
    DoesNotCommuteError,
    hindrance_inside,
    needs_nonnegative,
    passed_back,
    place,
)
from stripefold.surgery.graph import Node
from stripefold.surgery.operations import PRODUCTS
from stripefold.surgery.patterns import varies
from stripefold.surgery.scale_parts import JOINS, Search, adds_number, joining_axis, only_operand


class BackwardSearch(Search):
    """From a value back to the layers whose output side takes its scale."""

    def go(self, index: int, user: int, pattern: Tensor) -> None:
        """Bring the scale of a value to the layers that make it.

        Args:
            index: the value.
            user: the only node that may use it.
            pattern: the scale's pattern on it.

        Raises:
            DoesNotCommuteError: it cannot go there.
        """
        self._check_alone(index, user)
        node = self.graph.nodes[index]
        if node.kind == "layer":
            self._end(node, index, pattern)
        elif node.kind != "operation" or node.role != "activation":
            raise DoesNotCommuteError("what is scaled is no layer's output but the model's input, or a constant")
        elif node.name in PRODUCTS:
            self._through_product(node, index, pattern)
        elif node.name in ("add", "sub"):
            self._through_sum(node, index, pattern)
        elif node.name in JOINS:
            self._through_join(node, index, pattern)
        else:
            source = only_operand(self.graph, node)
            self.nonnegative |= needs_nonnegative(node)
            self.go(source, index, passed_back(node, self.graph.nodes[source].shape, pattern))

    def _check_alone(self, index: int, user: int) -> None:
        if index in self.graph.outputs:
            raise DoesNotCommuteError("what is scaled is returned by the model unscaled, too")
        others = set(self.graph.consumers[index]) - {user} - self.ignoring
        if others:
            node = self.graph.nodes[min(others)]
            what = repr(node.name) if node.kind == "layer" else f"{node.name!r} in {place(node)}"
            raise DoesNotCommuteError(f"what is scaled is used unscaled, too, by {what}")

    def _through_product(self, node: Node, index: int, pattern: Tensor) -> None:
        """v (a b) = (v a) b: any factor of full size may carry the scale; a divisor may not."""
        carriers = self._carriers(node.inputs[:1] if node.name == "div" else node.inputs, node)
        reasons = []
        for source in carriers if len(set(node.inputs)) == len(node.inputs) else ():
            parts, nonnegative = list(self.parts), self.nonnegative
            try:
                return self.go(source, index, pattern)
            except DoesNotCommuteError as error:
                reasons.append(str(error))
                self.parts, self.nonnegative = parts, nonnegative
        raise DoesNotCommuteError(reasons[0] if reasons else f"{node.name!r} in {place(node)} has no factor to scale")

    def _through_sum(self, node: Node, index: int, pattern: Tensor) -> None:
        """v (a + b) = v a + v b: every summand carries the scale."""
        carriers = self._carriers(node.inputs, node)
        if len(carriers) != len(node.inputs) or adds_number(node):
            raise DoesNotCommuteError(f"{node.name!r} in {place(node)} adds what cannot carry the scale")
        for source in carriers:
            self.go(source, index, pattern)

    def _through_join(self, node: Node, index: int, pattern: Tensor) -> None:
        """v [a, b] = [v' a, v'' b]: every operand of a concatenation carries its piece."""
        axis = joining_axis(node)
        if len(set(node.inputs)) != len(node.inputs):
            raise DoesNotCommuteError(f"{node.name!r} in {place(node)} takes one value twice")
        start = 0
        for source in node.inputs:
            length = self.graph.nodes[source].shape[axis]
            self.go(source, index, pattern.narrow(axis, start, length) if varies(pattern, [axis]) else pattern)
            start += length

    def _carriers(self, operands: tuple[int, ...], node: Node) -> list[int]:
        """The operands that have the result's shape without having been expanded to it."""
        nodes, size = self.graph.nodes, math.prod(node.shape)
        full = (i for i in dict.fromkeys(operands) if nodes[i].shape == node.shape and nodes[i].spread == size)
        return [i for i in full if nodes[i].role == "activation"]

    def _end(self, node: Node, index: int, pattern: Tensor) -> None:
        takes = self.side(node, "output")
        others = [i for i in self.graph.results(node.name) if i != index]
        if any(self.graph.consumers[i] or i in self.graph.outputs for i in others):
            raise DoesNotCommuteError(f"{node.name!r} returns several values")
        if takes.activated:
            hindrance, rectified = hindrance_inside(node.inner)
            if hindrance is not None:
                raise DoesNotCommuteError(f"{hindrance!r} in {node.name!r} does not commute with a per-channel scale")
            self.nonnegative |= rectified
        self.end_at(node, "output", (node.shape, takes.axis), pattern)
