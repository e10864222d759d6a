"""What computes nothing but a gate that became a constant: modules that can go, and operations that cannot.

A block may compute its gate from several modules in its own forward (a pool, two layers, an activation, each an
attribute of the block). The code of the block goes on calling them, so each is replaced by one that does nothing. What
the block's code computes itself, by functions, goes on running: it is counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from stripefold.baking.places import Place
from stripefold.stripe.discover import ChannelGate
from stripefold.surgery.graph import Graph, Node
from stripefold.surgery.held import held_by_functions, why_held
from stripefold.surgery.operations import VIEWS, WEIGHTED
from stripefold.surgery.visits import Visit


@dataclass(frozen=True, kw_only=True)
class Spare:
    """What a constant leaves behind.

    Attributes:
        modules: dotted path of a module that only serves the gate -> the shape of what it returns for one sample.
        operations: those that go on running although nothing needs their results.
        costly: whether any of them is a layer, or reads a map.
    """

    modules: Mapping[str, tuple[int, ...]]
    operations: int = 0
    costly: bool = False


NOTHING = Spare(modules={})


class SpareParts:
    """Finds what serves some gates of a model alone.

    Args:
        model: that was traced.
        graph: of its trace.
        dead: the nodes that nothing needs once all gates that are to be baked are constants.
        idle: whether modules may be replaced; otherwise all of them are counted.
    """

    def __init__(self, model: nn.Module, graph: Graph, dead: Collection[int], *, idle: bool = True) -> None:
        self._graph, self._dead, self._idle = graph, frozenset(dead), idle
        self._modules = dict(model.named_modules())
        self._held = held_by_functions(model)
        self._visits: dict[str, list[Visit]] = {}
        for visit in graph.visits:
            if visit.name:
                self._visits.setdefault(visit.name, []).append(visit)

    def of(self, gate: ChannelGate, place: Place) -> Spare:
        """What is left of one gate once its place is taken by a constant; of one in a graph, all of it is swept out."""
        if place.in_graph:
            return NOTHING
        own = self._only_for(gate.gate)
        left = own - self._inside(self._visits.get(place.path, ()))
        modules: dict[str, tuple[int, ...]] = {}
        # Code that looks at values must go on seeing them.
        free = self._idle and gate.where not in self._graph.decisions
        for name, calls in (
            () if not free else sorted(self._visits.items())
        ):  # what is around comes before what is inside
            ours = self._inside(calls)
            if ours & left and ours <= self._dead and not _related(name, [place.path, *modules]):
                shape = self._shape(name, calls)
                if shape is not None:
                    modules[name] = shape
        left -= self._inside(call for name in modules for call in self._visits[name])
        nodes = [self._graph.nodes[i] for i in left if self._graph.nodes[i].name not in VIEWS]
        return Spare(modules=modules, operations=len(nodes), costly=any(self._is_costly(node) for node in nodes))

    def _only_for(self, gate: int) -> set[int]:
        """The dead nodes through which a gate is computed; those of another gate lie behind living ones."""
        found: set[int] = set()
        todo = [gate]
        while todo:
            index = todo.pop()
            if index in self._dead and index not in found and self._graph.nodes[index].role != "constant":
                found.add(index)
                todo.extend(self._graph.nodes[index].inputs)
        return found

    def _inside(self, calls: Iterable[Visit]) -> set[int]:
        made = {index for call in calls for index in range(call.first, call.last)}
        return {index for index in made if self._graph.nodes[index].role != "constant"}

    def _shape(self, name: str, calls: list[Visit]) -> tuple[int, ...] | None:
        """What something that does nothing has to return in a module's place; None where that is not clear."""
        nodes = self._graph.nodes
        if name in self._graph.read or why_held(self._modules[name], self._held) is not None:
            return None
        shapes = set()
        for call in calls:
            if len(call.outputs) != 1 or not call.inputs:
                return None
            before, after = nodes[call.inputs[0]].shape, nodes[call.outputs[0]].shape
            if not before or before[:1] != after[:1] or sum(size > 1 for size in after[1:]) > 1:
                return None  # its size may depend on that of the image
            shapes.add(after[1:])
        return shapes.pop() if len(shapes) == 1 else None

    def _is_costly(self, node: Node) -> bool:
        if node.kind == "layer" or node.name in WEIGHTED:
            return True
        return any(sum(size > 1 for size in self._graph.nodes[i].shape[1:]) > 1 for i in node.inputs)


def _related(name: str, others: Iterable[str]) -> bool:
    """Whether a path lies inside one of others, or around it."""
    return any(name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.") for other in others)
