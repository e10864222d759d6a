"""A per-channel scale that moves with the flow, into every layer that the scaled value reaches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stripefold.graph.commuting import DoesNotCommuteError, needs_nonnegative, passed, place
from stripefold.graph.graph import Node
from stripefold.graph.operations import PRODUCTS
from stripefold.graph.patterns import aligned, joined, varies
from stripefold.graph.scale_parts import JOINS, Search, adds_number, joining_axis, only_operand

Carried = Mapping[int, Tensor]
"""Node -> the scale's pattern on it, for every value that is scaled."""


class ForwardSearch(Search):
    """From a value on to the layers whose input side takes its scale: all of them, or none."""

    def go(self, start: int, pattern: Tensor) -> None:
        """Bring the scale of a value to every layer that it reaches.

        Raises:
            DoesNotCommuteError: somewhere it cannot pass.
        """
        carried = {start: pattern}
        for index in range(start, len(self.graph.nodes)):
            node = self.graph.nodes[index]
            scaled = [i for i in dict.fromkeys(node.inputs) if i in carried]
            if index in self.ignoring or not (scaled or index == start):
                continue
            if index != start and node.kind == "layer":
                self._end(node, scaled[0], carried)
                continue
            seen = self.graph.seen_outside(index)
            if seen is not None:
                raise DoesNotCommuteError(f"what is scaled {seen.rstrip(',')}")
            if index != start:
                carried[index] = self._through(index, scaled, carried)

    def _through(self, index: int, scaled: list[int], carried: Carried) -> Tensor:
        node = self.graph.nodes[index]
        if self.neutral.get(index) in scaled:
            return carried[self.neutral[index]]
        if node.name in PRODUCTS:
            return self._through_product(node, scaled, carried)
        if node.name in JOINS:
            shapes = [self.graph.nodes[i].shape for i in node.inputs]
            return joined([carried.get(i) for i in node.inputs], shapes, joining_axis(node))
        if node.name in ("add", "sub"):
            return self._through_sum(node, scaled, carried)
        source = only_operand(self.graph, node)
        if node.role != "activation":
            raise DoesNotCommuteError(f"{node.name!r} in {place(node)} compares or counts what is scaled")
        if node.name in ("split", "split_with_sizes"):
            return self._piece(node, carried[source])
        self.nonnegative |= needs_nonnegative(node)
        return passed(node, self.graph.nodes[source].shape, carried[source])

    def _through_product(self, node: Node, scaled: list[int], carried: Carried) -> Tensor:
        """(v a) b = v (a b), for b not scaled itself."""
        twice = len(scaled) > 1 or node.inputs.count(scaled[0]) > 1
        if twice or (node.name == "div" and node.inputs[0] != scaled[0]):
            raise DoesNotCommuteError(f"{node.name!r} in {place(node)} would take the scale twice, or divide by it")
        return aligned(carried[scaled[0]], len(node.shape))

    def _through_sum(self, node: Node, scaled: list[int], carried: Carried) -> Tensor:
        """v a + v b = v (a + b), for one and the same v everywhere."""
        patterns = [aligned(carried[i], len(node.shape)) for i in scaled]
        alike = all(torch.equal(pattern, patterns[0]) for pattern in patterns)
        if len(set(node.inputs)) != len(scaled) or adds_number(node) or not alike:
            raise DoesNotCommuteError(f"{node.name!r} in {place(node)} adds what is not scaled")
        return patterns[0]

    def _piece(self, node: Node, pattern: Tensor) -> Tensor:
        """One piece of a split."""
        whole = self.graph.nodes[node.inputs[0]].shape
        axis = int(node.arguments["dim"]) % len(whole)
        if not varies(pattern, [axis]):
            return pattern
        if node.name == "split":
            start = node.position * int(node.arguments["split_size"])
        else:
            start = sum(node.arguments["split_sizes"][: node.position])
        return pattern.narrow(axis, start, node.shape[axis])

    def _end(self, node: Node, scaled: int, carried: Carried) -> None:
        takes = self.side(node, "input")
        if len(node.inputs) != 1:
            raise DoesNotCommuteError(f"{node.name!r} takes other inputs, too")
        self.end_at(node, "input", (self.graph.nodes[scaled].shape, takes.axis), carried[scaled])
