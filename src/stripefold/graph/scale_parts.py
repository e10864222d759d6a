"""The words of scale paths: which side of which layer takes which entries of a per-channel scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from stripefold.graph.commuting import DoesNotCommuteError, place
from stripefold.graph.graph import Graph, Node
from stripefold.graph.patterns import NOT_SCALED, Shape, index_along, varies

Side = Literal["output", "input"]

JOINS = frozenset({"cat", "concat", "concatenate"})


@dataclass(frozen=True, kw_only=True)
class Takes:
    """A layer's side that takes a per-channel scale.

    Attributes:
        axis: its channel axis, 1 or -1.
        activated: an activation follows inside the layer, so that what is scaled is not the output itself.
        eval_only: exact in evaluation mode only (batch statistics undo a scale of a BatchNorm's input).
    """

    axis: int
    activated: bool = False
    eval_only: bool = False


Sides = Callable[[str, Side], Takes | str]
"""``(layer's path, side) -> how it takes a scale there, or why it cannot``."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One layer that takes the scale, or a part of it.

    Attributes:
        layer: dotted path.
        side: which of its sides.
        index: per channel of that side, the entry of v that multiplies it; -1: none.
    """

    layer: str
    side: Side
    index: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a scale goes: all of the parts together, exactly.

    Attributes:
        parts: the layers.
        nonnegative: exact only where no entry of v is negative (a ReLU or a max pooling lies between).
        eval_only: exact in evaluation mode only.
    """

    parts: tuple[Part, ...]
    nonnegative: bool
    eval_only: bool = False


@dataclass(frozen=True)
class Reason:
    """Why a scale cannot go there, in words."""

    why: str


@dataclass
class Search:
    """What the searches in both directions share: the parts found so far, and how one ends at a layer.

    Attributes:
        graph: of a trace.
        sides: what the layers can take.
        ignoring: nodes that will not exist any more.
        neutral: node -> the operand that it passes on unchanged: a product by ones, an addition of zeros.
        parts: where the scale goes.
        nonnegative: whether something on the way asks for v >= 0.
        eval_only: whether a layer takes it in evaluation mode only.
    """

    graph: Graph
    sides: Sides
    ignoring: frozenset[int]
    neutral: Mapping[int, int] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    nonnegative: bool = False
    eval_only: bool = False
    _moved_by: list[tuple[int, str]] = field(default_factory=list)

    def target(self) -> Target:
        """What was found."""
        return Target(parts=tuple(self.parts), nonnegative=self.nonnegative, eval_only=self.eval_only)

    def check_users(self, index: int, users: Collection[int], moved: str) -> None:
        """See that nothing but these nodes uses a value.

        Args:
            index: the value.
            users: who may use it.
            moved: what happens to it, in a word: "scaled".

        Raises:
            DoesNotCommuteError: something else does.
        """
        if index in self.graph.outputs:
            raise DoesNotCommuteError(f"what is {moved} {self.graph.outputs[index]} un{moved}, too")
        others = set(self.graph.consumers[index]) - set(users) - self.ignoring
        if others:
            node = self.graph.nodes[min(others)]
            what = repr(node.name) if node.kind == "layer" else f"{node.name!r} in {place(node)}"
            raise DoesNotCommuteError(f"what is {moved} is used un{moved}, too, by {what}")
        self._moved_by.append((index, moved))

    def carriers(self, operands: Iterable[int], node: Node) -> list[int]:
        """The operands that have the result's shape without having been expanded to it."""
        nodes, size = self.graph.nodes, math.prod(node.shape)
        full = (i for i in dict.fromkeys(operands) if nodes[i].shape == node.shape and nodes[i].spread == size)
        return [i for i in full if nodes[i].role == "activation"]

    def check_only_result(self, node: Node, index: int) -> None:
        """See that a layer returns nothing else that is used.

        Raises:
            DoesNotCommuteError: it does.
        """
        others = [i for i in self.graph.results(node.name) if i != index]
        if any(self.graph.consumers[i] or i in self.graph.outputs for i in others):
            raise DoesNotCommuteError(f"{node.name!r} returns several values")

    def side(self, node: Node, side: Side) -> Takes:
        """How the layer of a node takes a scale.

        Raises:
            DoesNotCommuteError: it cannot, or it is called more than once.
        """
        calls = self.graph.calls_of.get(node.name, [])
        if len(calls) != 1:
            raise DoesNotCommuteError(f"{node.name!r} is called {len(calls)} times")
        if calls[0].implicit:
            raise DoesNotCommuteError(f"the weight of {node.name!r} is used without calling the layer")
        if node.name in self.graph.read:
            raise DoesNotCommuteError(f"a tensor of {node.name!r} is read outside its call")
        unlike = self.graph.unlike_its_type(node.name, taking=side == "input")
        if unlike is not None:
            raise DoesNotCommuteError(f"{node.name!r}: {unlike}")
        takes = self.sides(node.name, side)
        if isinstance(takes, str):
            raise DoesNotCommuteError(f"{node.name!r}: {takes}")
        self.eval_only |= takes.eval_only
        return takes

    def end_at(self, node: Node, side: Side, channels: tuple[Shape, int], pattern: Tensor) -> None:
        """Let a layer take the scale.

        Args:
            node: the layer.
            side: which side of it.
            channels: the shape of the value on that side, and its channel axis.
            pattern: of that value.

        Raises:
            DoesNotCommuteError: the scale lies along another axis.
        """
        for value, moved in self._moved_by:  # last, so that another reason comes first
            if value in self.graph.exposed:
                raise DoesNotCommuteError(f"what is {moved} {self.graph.exposed[value]} un{moved}, too")
        shape, axis = channels
        index = index_along(pattern, shape, axis % len(shape)) if len(shape) > 1 else None
        if index is None:
            raise DoesNotCommuteError(f"what is scaled are not the channels at the {side} of {node.name!r}")
        if any(entry != NOT_SCALED for entry in index):
            self.parts.append(Part(layer=node.name, side=side, index=index))


def pieces(graph: Graph, node: Node, pattern: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The operands of a concatenation, each with its piece of the result's pattern.

    Raises:
        DoesNotCommuteError: one value is taken twice.
    """
    axis = joining_axis(node)
    if len(set(node.inputs)) != len(node.inputs):
        raise DoesNotCommuteError(f"{node.name!r} in {place(node)} takes one value twice")
    start = 0
    for source in node.inputs:
        if len(graph.nodes[source].shape) != len(node.shape):  # an empty one, which ``torch.cat`` passes over
            continue
        length = graph.nodes[source].shape[axis]
        yield source, pattern.narrow(axis, start, length) if varies(pattern, [axis]) else pattern
        start += length


def joining_axis(node: Node) -> int:
    """The axis of a concatenation."""
    return int(node.arguments["dim"]) % len(node.shape)


def adds_number(node: Node) -> bool:
    """Whether a sum has a number among its arguments, as ``x + 1`` has."""
    return isinstance(node.arguments.get("other"), (int, float))


def only_operand(graph: Graph, node: Node) -> int:
    """The one operand that is not a constant.

    Raises:
        DoesNotCommuteError: there are several.
    """
    moving = [i for i in dict.fromkeys(node.inputs) if graph.nodes[i].role != "constant"]
    if len(moving) != 1:
        where = repr(node.where) if node.where else "the model itself"
        raise DoesNotCommuteError(f"{node.name!r} in {where} joins {len(moving)} values")
    return moving[0]
