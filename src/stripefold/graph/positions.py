"""Places of a model where a scale of the positions folds exactly, found in a trace.

A convolution cannot hold a weight per position. These can, each at one resolution:

- *tokens*: a layer whose output features are positions (the token-mixing layers of MLP-Mixer, ResMLP, gMLP);
- *pooling*: a mean over all positions, mean_p(s_p x_p), which is a weighted mean;
- *flatten*: a linear layer on the flattened map, W (s (.) x) = (W diag(s)) x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from stripefold.graph.channels import axis_after, channel_axes, channel_axis, mixes_positions
from stripefold.graph.graph import Graph, Node
from stripefold.graph.module_calls import ModuleCall
from stripefold.graph.operation_names import AVERAGES, MEETINGS, PRODUCTS, RESHAPES, VIEWS, WRITE

PositionKind = Literal["tokens", "pooling", "flatten"]


@dataclass(frozen=True, kw_only=True)
class PositionPlace:
    """One place.

    Attributes:
        name: dotted path of the layer, or of the module that pools.
        kind: what takes the scale there.
        grid: sizes of the position axes, such as (H, W).
        channels: C of the map.
        axis: the channel axis of the map, 1 or -1.
        output: shape that the pooling gives for one sample: (C,), (C, 1, 1); () elsewhere.
        aside: what is pooled has other users as well (the squeeze of an attention, a branch of a pyramid).
    """

    name: str
    kind: PositionKind
    grid: tuple[int, ...]
    channels: int
    axis: int = 1
    output: tuple[int, ...] = ()
    aside: bool = False

    @property
    def size(self) -> str:
        """The grid in words: 7x7."""
        return "x".join(map(str, self.grid))

    @property
    def why(self) -> str:
        """What the place is, in words."""
        return {
            "tokens": f"its output features are {self.size} positions",
            "pooling": f"averages {self.size} positions",
            "flatten": f"linear on {self.size} flattened positions",
        }[self.kind]


@dataclass(frozen=True, kw_only=True)
class NoPlace:
    """Where positions meet, and a scale of them cannot be held; ``name`` is the innermost module there."""

    name: str
    what: str
    why: str


def position_places(graph: Graph) -> tuple[list[PositionPlace], list[NoPlace]]:
    """Every place, in call order, each once; and every mean over positions that no module of its own computes."""
    axes = channel_axes(graph)
    places: dict[str, PositionPlace] = {}
    without: list[NoPlace] = []
    for index, node in enumerate(graph.nodes):
        found: PositionPlace | NoPlace | None = None
        if node.kind == "layer":
            found = _tokens(graph, index, axes) or _flatten(graph, index, axes)
        elif node.name in AVERAGES and node.role == "activation":
            found = _pooling(graph, index, axes)
        if isinstance(found, PositionPlace):
            places.setdefault(found.name, found)
        elif found is not None:
            without.append(found)
    return list(places.values()), list(dict.fromkeys(without))


# Token mixing.


def _tokens(graph: Graph, index: int, axes: list[int | None]) -> PositionPlace | None:
    """A layer that mixes positions, whose output features meet the map again as positions."""
    node, axis = graph.nodes[index], axes[index]
    if axis is None or not mixes_positions(graph, index, axes) or not graph.is_called_once(node.name):
        return None
    features = channel_axis(node)
    if not _meets_positions(graph, index, features, axes):
        return None
    size = node.shape[features]
    return PositionPlace(name=node.name, kind="tokens", grid=_grid(graph, index, size, axes), channels=node.shape[axis])


def _meets_positions(graph: Graph, index: int, features: int, axes: list[int | None]) -> bool:
    """Whether an axis joins, in a sum or product, a map in which it is no channel axis."""
    todo = [(index, features)]
    while todo:
        source, axis = todo.pop()
        for user in set(graph.consumers[source]):
            node = graph.nodes[user]
            after = axis_after(graph, source, user, axis) if node.kind == "operation" else None
            if after is None:
                continue
            others = [i for i in node.inputs if i != source and graph.nodes[i].role == "activation"]
            if node.name in MEETINGS and any(_has_position(graph, i, node, after, axes) for i in others):
                return True
            if not others and (node.name in VIEWS or node.name in PRODUCTS or node.shape == graph.nodes[source].shape):
                todo.append((user, after))
    return False


def _has_position(graph: Graph, other: int, joint: Node, axis: int, axes: list[int | None]) -> bool:
    return graph.nodes[other].shape == joint.shape and axes[other] not in (None, axis)


def _grid(graph: Graph, index: int, size: int, axes: list[int | None]) -> tuple[int, ...]:
    """The sizes of the nearest map upstream that has so many positions; (P,) where there is none."""
    upstream = graph.values_upstream[index]
    for earlier in range(index - 1, -1, -1):
        node = graph.nodes[earlier]
        if upstream >> earlier & 1 and len(node.shape) > 3 and axes[earlier] is not None:
            grid = _positions(node, axes[earlier])
            if grid is not None and math.prod(grid) == size:
                return grid
    return (size,)


def _positions(node: Node, axis: int | None) -> tuple[int, ...] | None:
    """The sizes of all axes but samples and channels, where the channels are second or last."""
    if axis == 1:
        return node.shape[2:]
    return node.shape[1:-1] if axis == len(node.shape) - 1 else None


# Flatten, then linear.


def _flatten(graph: Graph, index: int, axes: list[int | None]) -> PositionPlace | None:
    """A linear layer on (N, C P), flattened just before from a map of known axes."""
    node = graph.nodes[index]
    taken = [i for i in dict.fromkeys(node.inputs) if graph.nodes[i].role == "activation"]
    if not taken or len(graph.nodes[taken[0]].shape) != 2 or not graph.is_called_once(node.name):
        return None
    current = taken[0]
    while len(graph.nodes[current].shape) == 2:
        value = graph.nodes[current]
        sources = [i for i in dict.fromkeys(value.inputs) if graph.nodes[i].role == "activation"]
        if value.kind != "operation" or len(sources) != 1:
            return None
        before = graph.nodes[sources[0]]
        if not (value.name in RESHAPES or before.shape == value.shape):
            return None
        current = sources[0]
    flat, axis = graph.nodes[taken[0]].shape, axes[current]
    shape = graph.nodes[current].shape
    grid = _positions(graph.nodes[current], axis)
    if axis is None or grid is None or math.prod(grid) < 2 or shape[0] != flat[0]:
        return None
    if len(grid) == 1:
        grid = _grid(graph, index, grid[0], axes)
    return PositionPlace(name=node.name, kind="flatten", grid=grid, channels=shape[axis], axis=1 if axis == 1 else -1)


# Global pooling.


def _pooling(graph: Graph, index: int, axes: list[int | None]) -> PositionPlace | NoPlace | None:
    """A module that does nothing but average all positions of a map (N, C, ...)."""
    module_calls = [visit for visit in graph.module_calls if visit.first <= index < visit.last]
    for visit in module_calls:
        place = _pooled(graph, visit, axes)
        if place is not None and sum(each.name == place.name for each in graph.module_calls) == 1:
            return place
    node = graph.nodes[index]
    source = node.inputs[0]
    grid = _positions(graph.nodes[source], axes[source])
    whole = (
        grid is not None
        and math.prod(grid) > 1
        and math.prod(node.shape) * math.prod(grid) == math.prod(graph.nodes[source].shape)
    )
    if not whole or axes[source] is None or len(set(graph.consumers[source])) > 1:
        return None
    return NoPlace(name=node.where, what=node.name, why=_why_not(node, axes[source]))


def _pooled(graph: Graph, visit: ModuleCall, axes: list[int | None]) -> PositionPlace | None:
    if not visit.name or len(visit.inputs) != 1 or len(set(visit.outputs)) != 1:
        return None
    source, result = graph.nodes[visit.inputs[0]], graph.nodes[visit.outputs[0]]
    inside = [graph.nodes[i] for i in range(visit.first, visit.last)]
    averages = [node for node in inside if node.name in AVERAGES]
    others = [
        node for node in inside if node.name not in AVERAGES | VIEWS | {WRITE}
    ]  # a channels_last mean is restrided in place
    grid = source.shape[2:]
    pooled = len(source.shape) > 2 and result.shape[:2] == source.shape[:2] and math.prod(result.shape[2:]) == 1
    if others or len(averages) != 1 or axes[visit.inputs[0]] != 1 or not pooled or math.prod(grid) < 2:
        return None
    return PositionPlace(
        name=visit.name, kind="pooling", grid=grid, channels=source.shape[1], output=result.shape[1:],
        aside=len(set(graph.consumers[visit.inputs[0]])) > 1,
    )  # fmt: skip


def _why_not(node: Node, axis: int | None) -> str:
    where = f"{node.where!r}" if node.where else "the model"
    if axis != 1:
        return f"{node.name!r} in {where} averages a map whose channels come last, which no convolution takes"
    return (
        f"{node.name!r} is called in the forward of {where} and not by a module of its own, so that weights of the "
        "positions have no place: pool with nn.AdaptiveAvgPool2d(1) there"
    )
