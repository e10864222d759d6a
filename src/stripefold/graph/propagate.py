"""Where may a per-channel scale or shift of a value go, exactly? One walk, in both directions, for both.

The value is y = v (.) x, or y = x + t, with v and t constant per channel. *Backward*: x comes from a layer through
operations that the change passes (``operation_table``), and nothing else sees what lies between: the layer's output
side takes it. *Forward*: everything that y reaches does so through such operations and ends in layers whose input side
takes it. Whether a layer takes it is for the caller to say (``Accept``), because rules live in another package.

A scale goes into *every* summand and *one* factor, a shift into *one* summand and through numbers only.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from stripefold.graph.absorption import Absorption, Accept, Accepts, FoldTarget, Refusal, Side
from stripefold.graph.graph import Graph, Node
from stripefold.graph.operation_table import (
    Change,
    Operation,
    StoppedError,
    check_passes,
    has_number,
    hindrance_inside,
    joining_axis,
    location,
    operation,
    summand_factors,
)
from stripefold.graph.patterns import NOT_SCALED, Shape, aligned, concatenated, index_along, pattern_along, varies

NONE: Mapping[int, int] = MappingProxyType({})
_MOVED: dict[Change, str] = {"scale": "scaled", "shift": "shifted"}


@dataclass(frozen=True, kw_only=True)
class Flow:
    """One run along which changes move.

    Attributes:
        graph: of a trace.
        accept: what the layers take.
        dead: nodes that lead nowhere, or will not exist any more (a gate's own path, see ``Graph.dead_without``).
        identity_nodes: node -> the operand that it passes on unchanged: a product by ones, a sum with zeros, a norm
            that was merged. Whoever gives it may add to it between two questions.
    """

    graph: Graph
    accept: Accept
    dead: Set[int] = frozenset()
    identity_nodes: Mapping[int, int] = field(default_factory=lambda: NONE)

    def backward(self, change: Change, value: int, axis: int, *, user: int) -> FoldTarget | Refusal:
        """Where the change of a value goes against the flow.

        Args:
            change: a scale or a shift.
            value: the node that is changed.
            axis: its channel axis.
            user: the node that changes it; any other user of the value is in the way.
        """
        walk = _Backward(self, change)
        try:
            return walk.run(value, user, pattern_along(self.graph.nodes[value].shape, axis % self._rank(value)))
        except StoppedError as error:
            return Refusal.at(error)

    def forward(self, change: Change, value: int, axis: int) -> FoldTarget | Refusal:
        """Where the change of a value goes with the flow: into every consumer, or nowhere.

        Args:
            change: a scale or a shift.
            value: the changed node.
            axis: its channel axis.
        """
        walk = _Forward(self, change)
        try:
            return walk.run(value, pattern_along(self.graph.nodes[value].shape, axis % self._rank(value)))
        except StoppedError as error:
            return Refusal.at(error)

    def _rank(self, value: int) -> int:
        return max(1, len(self.graph.nodes[value].shape))


@dataclass(frozen=True)
class _Carried:
    """What one value carries: which entry each element, and times what."""

    pattern: Tensor
    factor: float = 1.0

    def is_like(self, other: _Carried) -> bool:
        return self.factor == other.factor and bool((self.pattern == other.pattern).all())

    def moved(self, pattern: Tensor, factor: float = 1.0) -> _Carried:
        return _Carried(pattern, self.factor * factor)


_Asked = dict[int, dict[int, _Carried]]
"""Value -> its users that carry the change, each with what it asks of the value."""


class _Walk:
    """What both directions share: the parts found so far, and how one ends at a layer."""

    def __init__(self, flow: Flow, change: Change) -> None:
        self.flow, self.graph, self.change = flow, flow.graph, change
        self.moved = _MOVED[change]
        self.parts: list[Absorption] = []
        self.nonnegative = self.eval_only = False
        self.crossed: list[int] = []

    def target(self) -> FoldTarget:
        return FoldTarget(parts=tuple(self.parts), nonnegative=self.nonnegative, eval_only=self.eval_only)

    def accepted(self, node: Node, side: Side) -> Accepts:
        """How the layer of a node takes the change, which it must, in its only call."""
        name = node.name
        reason = self.graph.why_not_one_plain_call(name, taking=side == "input", giving=side == "output")
        if reason is not None:
            raise StoppedError(reason)
        accepts = self.flow.accept(name, side, self.change)
        if isinstance(accepts, str):
            raise StoppedError(f"{name!r}: {accepts}")
        reason = self.graph.why_given_more(name, accepts.given)
        if reason is not None:
            raise StoppedError(reason)
        self.eval_only |= accepts.eval_only
        return accepts

    def end_at(self, node: Node, side: Side, channels: tuple[Shape, int], carried: _Carried) -> None:
        """Let a layer take the change, whose channels lie on an axis of a value on that side."""
        shape, axis = channels
        index = index_along(carried.pattern, shape, axis % len(shape)) if len(shape) > 1 else None
        if index is None:
            raise StoppedError(f"what is {self.moved} are not the channels at the {side} of {node.name!r}")
        for value in self.crossed:  # last, so that another reason comes first
            if value in self.graph.exposed:
                raise StoppedError(f"what is {self.moved} {self.graph.exposed[value]} un{self.moved}, too", unseen=True)
        if any(entry != NOT_SCALED for entry in index):
            self.parts.append(
                Absorption(layer=node.name, side=side, index=index, change=self.change, factor=carried.factor)
            )

    def only_operand(self, node: Node) -> int:
        """The one operand that is not a constant."""
        moving = [i for i in dict.fromkeys(node.inputs) if self.graph.nodes[i].role != "constant"]
        if len(moving) != 1:
            raise StoppedError(f"{node.name!r} in {location(node)} joins {len(moving)} values")
        return moving[0]

    def shapes(self, node: Node) -> list[Shape]:
        return [self.graph.nodes[i].shape for i in node.inputs]


class _Backward(_Walk):
    """From a value back to the layers whose output side takes its change."""

    def run(self, value: int, user: int, pattern: Tensor) -> FoldTarget:
        self._walk({value: {user: _Carried(pattern)}})
        self.parts.reverse()  # into the order of computation
        return self.target()

    def _walk(self, asked: _Asked) -> None:
        """The latest value first: whoever uses it has been met by then, so paths that part and meet again are seen."""
        while asked:
            index = max(asked)
            carried = self._agreed(index, asked.pop(index))
            node = self.graph.nodes[index]
            if index in self.flow.identity_nodes:
                asked.setdefault(self.flow.identity_nodes[index], {})[index] = carried
            elif node.kind == "layer":
                self._end(node, carried)
            elif node.kind != "operation" or node.role != "activation":
                raise StoppedError(f"what is {self.moved} is no layer's output but the model's input, or a constant")
            else:
                row = operation(node, self.change)
                if row.family == ("product" if self.change == "scale" else "sum"):
                    self._into_one(node, index, carried, asked)
                    return
                for source, piece in self._through(row, node, carried):
                    asked.setdefault(source, {})[index] = piece

    def _agreed(self, index: int, asked: dict[int, _Carried]) -> _Carried:
        """What all users of a value carry, which is one and the same."""
        if index in self.graph.outputs:
            raise StoppedError(f"what is {self.moved} {self.graph.outputs[index]} un{self.moved}, too")
        others = [user for user in self.graph.consumers[index] if user not in asked and user not in self.flow.dead]
        if others:
            node = self.graph.nodes[min(others)]
            what = repr(node.name) if node.kind == "layer" else f"{node.name!r} in {location(node)}"
            raise StoppedError(f"what is {self.moved} is used un{self.moved}, too, by {what}")
        self.crossed.append(index)
        first, *rest = asked.values()
        if not all(first.is_like(other) for other in rest):
            raise StoppedError(f"one value would have to carry two different {self.change}s")
        return first

    def _through(self, row: Operation, node: Node, carried: _Carried) -> Iterator[tuple[int, _Carried]]:
        """The operands that carry the change of a result."""
        passes = check_passes(node, self.change)
        self.nonnegative |= passes.nonnegative
        if row.family == "join":
            yield from self._pieces(node, carried)
        elif row.family == "sum":  # v (a + b) = v a + v b: every summand carries the scale
            carriers = self._carriers(node.inputs, node)
            if len(carriers) != len(node.inputs):
                raise StoppedError(f"{node.name!r} in {location(node)} adds what cannot carry the scale")
            yield from ((source, carried) for source in carriers)
        else:
            source = self.only_operand(node)
            pattern = row.layout.back(node, self.graph.nodes[source].shape, carried.pattern)
            yield source, carried.moved(pattern, 1 / passes.factor)

    def _into_one(self, node: Node, index: int, carried: _Carried, asked: _Asked) -> None:
        """v (a b) = (v a) b, and (a + b) + t = (a + t) + b: any one operand of full size; no divisor."""
        stopped: list[StoppedError] = []
        for source, factor in self._choices(node):
            before = list(self.parts), self.nonnegative, self.eval_only, list(self.crossed)
            trial = {value: dict(users) for value, users in asked.items()}
            trial.setdefault(source, {})[index] = carried.moved(carried.pattern, 1 / factor)
            try:
                return self._walk(trial)
            except StoppedError as error:
                stopped.append(error)
                self.parts, self.nonnegative, self.eval_only, self.crossed = before
        what = "factor to scale" if self.change == "scale" else "summand to shift"
        raise stopped[0] if stopped else StoppedError(f"{node.name!r} in {location(node)} has no {what}")

    def _choices(self, node: Node) -> list[tuple[int, float]]:
        """The operands that may take a change alone, and what multiplies each of them."""
        if self.change == "scale":
            check_passes(node, "scale")
        if len(set(node.inputs)) != len(node.inputs):
            return []
        factors = summand_factors(node) if self.change == "shift" else [1.0] * len(node.inputs)
        inputs: Sequence[int] = node.inputs[:1] if node.name == "div" else node.inputs
        full = set(self._carriers(inputs, node))
        return [(i, factor) for i, factor in zip(node.inputs, factors, strict=True) if i in full and factor]

    def _carriers(self, operands: Sequence[int], node: Node) -> list[int]:
        """The operands that have the result's shape without having been expanded to it."""
        nodes, size = self.graph.nodes, math.prod(node.shape)
        full = (
            i for i in dict.fromkeys(operands) if nodes[i].shape == node.shape and nodes[i].unbroadcast_numel == size
        )
        return [i for i in full if nodes[i].role == "activation"]

    def _pieces(self, node: Node, carried: _Carried) -> Iterator[tuple[int, _Carried]]:
        """The operands of a concatenation, each with its piece of the result's pattern."""
        axis = joining_axis(node)
        if len(set(node.inputs)) != len(node.inputs):
            raise StoppedError(f"{node.name!r} in {location(node)} takes one value twice")
        start = 0
        for source, shape in zip(node.inputs, self.shapes(node), strict=True):
            if len(shape) != len(node.shape):  # an empty one, which ``torch.cat`` passes over
                continue
            cut = varies(carried.pattern, [axis])
            yield source, carried.moved(carried.pattern.narrow(axis, start, shape[axis]) if cut else carried.pattern)
            start += shape[axis]

    def _end(self, node: Node, carried: _Carried) -> None:
        accepts = self.accepted(node, "output")
        if accepts.activated and self.change == "shift":
            raise StoppedError(f"an activation in {node.name!r} stands behind its bias")
        if accepts.activated:
            hindrance, rectified = hindrance_inside(node.inner)
            if hindrance is not None:
                raise StoppedError(f"{hindrance!r} in {node.name!r} does not commute with a per-channel scale")
            self.nonnegative |= rectified
        self.end_at(node, "output", (node.shape, accepts.axis), carried)


class _Forward(_Walk):
    """From a value on to the layers whose input side takes its change: all of them, or none."""

    def run(self, value: int, pattern: Tensor) -> FoldTarget:
        carried = {value: _Carried(pattern)}
        todo, done = [value], set()
        while todo:  # in the order of computation, so that all operands of a node are known by then
            index = heapq.heappop(todo)
            if index in done or index in self.flow.dead:
                continue
            done.add(index)
            node = self.graph.nodes[index]
            changed = [i for i in dict.fromkeys(node.inputs) if i in carried]
            if index != value and node.kind == "layer" and self.flow.identity_nodes.get(index) not in changed:
                self._end(node, changed[0], carried)
                continue
            seen = self.graph.seen_outside(index)
            if seen is not None:
                unseen = index not in self.graph.outputs
                raise StoppedError(f"what is {self.moved} {seen.rstrip(',')}", unseen=unseen)
            if index != value:
                carried[index] = self._through(index, changed, carried)
            for user in self.graph.consumers[index]:
                heapq.heappush(todo, user)
        if not self.parts:
            raise StoppedError(f"what is {self.moved} reaches no layer")
        return self.target()

    def _through(self, index: int, changed: list[int], carried: Mapping[int, _Carried]) -> _Carried:
        node = self.graph.nodes[index]
        if self.flow.identity_nodes.get(index) in changed:
            return carried[self.flow.identity_nodes[index]]
        if node.role != "activation":
            raise StoppedError(f"{node.name!r} in {location(node)} compares or counts what is {self.moved}")
        row = operation(node, self.change)
        if row.family == "product" and self.change == "scale":
            self._check_once(node, changed)
        if row.family == "sum":
            return self._sum(node, changed, carried)
        passes = check_passes(node, self.change)
        self.nonnegative |= passes.nonnegative
        if row.family == "join":
            return self._join(node, changed, carried)
        source = changed[0] if row.family == "product" else self.only_operand(node)
        own = carried[source]
        return own.moved(row.layout.ahead(node, self.graph.nodes[source].shape, own.pattern), passes.factor)

    def _check_once(self, node: Node, changed: list[int]) -> None:
        """(v a) b = v (a b), for b not scaled itself."""
        twice = len(changed) > 1 or node.inputs.count(changed[0]) > 1
        if twice or (node.name == "div" and node.inputs[0] != changed[0]):
            raise StoppedError(f"{node.name!r} in {location(node)} would take the scale twice, or divide by it")

    def _sum(self, node: Node, changed: list[int], carried: Mapping[int, _Carried]) -> _Carried:
        """v a + v b = v (a + b), for one v everywhere; (a + t) + b = (a + b) + t, whatever b is."""
        patterns = [aligned(carried[i].pattern, len(node.shape)) for i in changed]
        alike = all(torch.equal(pattern, patterns[0]) for pattern in patterns)
        if self.change == "scale":
            if len(set(node.inputs)) != len(changed) or has_number(node) or not alike:
                raise StoppedError(f"{node.name!r} in {location(node)} adds what is not scaled")
            return _Carried(patterns[0])
        check_passes(node, "shift")
        if not alike:
            raise StoppedError(f"{node.name!r} in {location(node)} adds two different shifts")
        shares = zip(node.inputs, summand_factors(node), strict=True)
        return _Carried(patterns[0], sum(factor * carried[i].factor for i, factor in shares if i in carried))

    def _join(self, node: Node, changed: list[int], carried: Mapping[int, _Carried]) -> _Carried:
        factors = {carried[i].factor for i in changed}
        if len(factors) > 1:
            raise StoppedError(f"{node.name!r} in {location(node)} joins different multiples of what is {self.moved}")
        own = [carried[i].pattern if i in carried else None for i in node.inputs]
        return _Carried(concatenated(own, self.shapes(node), joining_axis(node)), factors.pop())

    def _end(self, node: Node, source: int, carried: Mapping[int, _Carried]) -> None:
        accepts = self.accepted(node, "input")
        self.end_at(node, "input", (self.graph.nodes[source].shape, accepts.axis), carried[source])
