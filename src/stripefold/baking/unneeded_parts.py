"""Modules and operations that compute nothing but a gate that became a constant: which of them can be removed.

A block may compute its gate from several modules in its own forward (a pool, two layers, an activation, each an
attribute of the block). The code of the block goes on calling them, so each is replaced by one that does nothing. What
the block's code computes itself, by functions, goes on running: it is counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from stripefold.baking.places import ReplacedModule
from stripefold.graph.absorption import Refusal
from stripefold.graph.graph import Graph, Node
from stripefold.graph.module_calls import ModuleCall
from stripefold.graph.operation_names import VIEWS, WEIGHTED
from stripefold.modules.closure_refs import held_by_functions, why_held
from stripefold.stripe.discover import ChannelGate


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


@dataclass(frozen=True)
class Leaving:
    """What goes from one recorded run.

    Attributes:
        graph: the run.
        dead: the nodes that nothing needs once all gates that are to be baked are constants.
        replaced: dotted paths of the modules that give way to the constants.
    """

    graph: Graph
    dead: Collection[int]
    replaced: Collection[str]


class SpareParts:
    """Finds what serves some gates of a model alone, in every run.

    Args:
        model: that was traced.
        runs: one for each example.
        idle: whether modules may be replaced; otherwise all of them are counted.
    """

    def __init__(self, model: nn.Module, runs: Sequence[Leaving], *, idle: bool = True) -> None:
        held = held_by_functions(model)
        modules = dict(model.named_modules())
        self._runs = [_RunParts(modules, run, held, idle=idle) for run in runs]

    def exposed(self, gates: Sequence[ChannelGate | None]) -> Refusal | None:
        """Why a gate stays dynamic: on another path, which ran or not, other layers compute it; or None."""
        present = [(run, gate) for run, gate in zip(self._runs, gates, strict=True) if gate is not None]
        if len({run.layers(gate) for run, gate in present}) > 1:
            return Refusal("other layers compute it on another example")
        found = (run.exposed(gate) for run, gate in present)
        return next((refusal for refusal in found if refusal is not None), None)

    def of(self, gates: Sequence[ChannelGate | None], place: ReplacedModule) -> Spare:
        """What is left of one gate once its place is taken by a constant; of one in a graph, all of it is swept out.

        Args:
            gates: the gate as it stands in each run, None where it does not run.
            place: of its constant.
        """
        if place.in_graph:
            return NOTHING
        found = [{} if gate is None else run.modules(gate) for run, gate in zip(self._runs, gates, strict=True)]
        first, gate = next((run, gate) for run, gate in zip(self._runs, gates, strict=True) if gate is not None)
        modules = {
            name: shape
            for name, shape in first.modules(gate).items()
            if all(own.get(name) == shape or not run.runs(name) for run, own in zip(self._runs, found, strict=True))
        }
        return first.left(gate, modules)


class _RunParts:
    """What serves some gates alone, in one run."""

    def __init__(
        self, modules: Mapping[str, nn.Module], leaving: Leaving, held: Mapping[nn.Module, str], *, idle: bool
    ) -> None:
        self._modules, self._graph, self._dead, self._held = modules, leaving.graph, frozenset(leaving.dead), held
        self._idle, self._replaced = idle, tuple(leaving.replaced)
        self._replaced_paths = frozenset(self._replaced)
        self._visits: dict[str, list[ModuleCall]] = {}
        for visit in self._graph.module_calls:
            if visit.name:
                self._visits.setdefault(visit.name, []).append(visit)
        self._gone = self._inside(call for path in self._replaced for call in self._visits.get(path, ()))
        self._around_replaced = {above for path in self._replaced for above in _above(path)}
        self._serving = self._serving_modules()

    def _serving_modules(self) -> dict[int, list[str]]:
        """Node -> the modules that run it, of those that run nothing but what nothing needs and that may go."""
        found: dict[int, list[str]] = {}
        for name, calls in self._visits.items():
            if self._is_replaced(name) or any(index not in self._dead for index in self._each(calls)):
                continue
            for index in self._each(calls):
                found.setdefault(index, []).append(name)
        return found

    def _is_replaced(self, name: str) -> bool:
        """Whether a module is replaced, lies inside one that is, or around it."""
        return name in self._around_replaced or not self._replaced_paths.isdisjoint(_above(name))

    def runs(self, name: str) -> bool:
        """Whether a module was called."""
        return name in self._visits

    def layers(self, gate: ChannelGate) -> frozenset[str]:
        """The layers that compute a gate alone."""
        nodes = (self._graph.nodes[index] for index in self._only_for(gate.gate))
        return frozenset(node.name for node in nodes if node.kind == "layer")

    def exposed(self, gate: ChannelGate) -> Refusal | None:
        """Why other layers may compute a gate on another path."""
        found = sorted(self._only_for(gate.gate) & self._graph.meets_weights)
        if not found:
            return None
        return Refusal(f"what computes it {self._graph.exposed[found[0]].rstrip(',')}", unseen=True)

    def modules(self, gate: ChannelGate) -> dict[str, tuple[int, ...]]:
        """The modules that serve a gate alone -> the shape of what each returns for one sample."""
        found: dict[str, tuple[int, ...]] = {}
        # Code that looks at values must go on seeing them.
        if not self._idle or gate.where in self._graph.data_dependent_reads:
            return found
        left = self._only_for(gate.gate) - self._gone
        names = {name for index in left for name in self._serving.get(index, ())}
        for name in sorted(names):  # what is around comes before what is inside
            if not _related(name, found):
                shape = self._shape(name, self._visits[name])
                if shape is not None:
                    found[name] = shape
        return found

    def left(self, gate: ChannelGate, modules: Mapping[str, tuple[int, ...]]) -> Spare:
        """What goes on running once these modules do nothing."""
        left = self._only_for(gate.gate) - self._gone
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

    def _inside(self, calls: Iterable[ModuleCall]) -> set[int]:
        return set(self._each(calls))

    def _each(self, calls: Iterable[ModuleCall]) -> Iterator[int]:
        nodes = self._graph.nodes
        return (i for call in calls for i in range(call.first, call.last) if nodes[i].role != "constant")

    def _shape(self, name: str, calls: list[ModuleCall]) -> tuple[int, ...] | None:
        """What something that does nothing has to return in a module's place; None where that is not clear."""
        nodes = self._graph.nodes
        if name in self._graph.read or why_held(self._modules[name], self._held) is not None:
            return None
        shapes = set()
        for call in calls:
            if len(call.outputs) != 1 or not call.inputs:
                return None
            if call.outputs[0] in self._graph.exposed:
                return None  # another path may use it
            before, after = nodes[call.inputs[0]].shape, nodes[call.outputs[0]].shape
            if not before or before[:1] != after[:1] or sum(size > 1 for size in after[1:]) > 1:
                return None  # its size may depend on that of the image
            shapes.add(after[1:])
        return shapes.pop() if len(shapes) == 1 else None

    def _is_costly(self, node: Node) -> bool:
        if node.kind == "layer" or node.name in WEIGHTED:
            return True
        return any(sum(size > 1 for size in self._graph.nodes[i].shape[1:]) > 1 for i in node.inputs)


def _above(path: str) -> list[str]:
    """A path and those that it lies in."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _related(name: str, others: Iterable[str]) -> bool:
    """Whether a path lies inside one of others, or around it."""
    return any(name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.") for other in others)
