"""The graph that a trace records: one node per value, in the order of computation.

Ancestry is kept in Python integers used as bit sets, so that "how many layers lie upstream of this value and not
of that one" is one ``and`` and one population count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from stripefold.graph.given import Given
from stripefold.graph.module_calls import ModuleCall

KeyT = TypeVar("KeyT", str, int)
NodeKind = Literal["input", "constant", "operation", "layer"]
# How a value depends on the model's input: not at all; only through integers or comparisons (ids, masks);
# or as a feature map does.
Role = Literal["constant", "integer_dependent", "activation"]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One value.

    Attributes:
        kind: Where the value comes from.
        name: The layer's dotted path, the operation's name, or "" for inputs and constants.
        inputs: Indices of the values it was computed from, in the order of the schema's arguments.
        role: How it depends on the model's input.
        shape: Its shape.
        unbroadcast_numel: The number of its distinct elements: a dimension made by broadcasting counts once.
        arguments: The arguments that are no tensors, by the names of the operation's schema, defaults included.
        position: Which of the operation's results it is.
        pointwise: Every element is a function of the elements at the same place of the operands, broadcast.
        where: Dotted path of the innermost module that was running.
        call: Which call of a layer gave the value, counted over the run; -1 where no layer did.
        inner: Names of the operations that ran inside the layer.
        owners: The layers whose parameters a constant was computed from.
    """

    kind: NodeKind
    name: str = ""
    inputs: tuple[int, ...] = ()
    role: Role = "activation"
    shape: tuple[int, ...] = ()
    unbroadcast_numel: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    position: int = 0
    pointwise: bool = False
    where: str = ""
    call: int = -1
    inner: tuple[str, ...] = ()
    owners: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Attributes:
        name: Dotted path of the layer.
        inputs: Shapes of the activations it was given.
        outputs: Shapes of what it returned.
        implicit: Its parameters were used by another module, and the layer itself was not called.
        input_changed_by_hook: A hook of the layer's own gave it something else than what it was called with.
        given: How many tensors it was called with, those included that are no values of the run: parameters.
    """

    name: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    implicit: bool = False
    input_changed_by_hook: bool = False
    given: Given = field(default_factory=Given)


@dataclass
class Graph:
    """All values of one run.

    Attributes:
        nodes: In the order of computation, so that inputs come before what is computed from them.
        calls: Every call of a layer, in order; ``Node.call`` is an index into it.
        layers_upstream: Per node, the bit set of weighted calls (layers and unowned weighted operations) upstream,
            its own included.
        values_upstream: Per node, the bit set of nodes upstream, itself included.
        consumers: Per node, the nodes that use it.
        outputs: Nodes that something outside the graph sees, and what: "is returned by the model", "is read by Python
            in 'head'".
        activations: The bit set of nodes whose role is "activation".
        module_calls: Every call of a module, layer or not, in the order in which they returned.
        tensors: Dotted path of a parameter or buffer -> its node, where the run used it outside layers.
        exposed: Nodes that a path which the examples did not take may use, or make otherwise, and how.
        meets_weights: Those of them that a layer with weights may meet.
        visible: Dotted path of a module -> the nodes that the code of its ``forward`` handles.
        data_dependent_reads: Dotted paths of the modules that took a value which depends on the input into Python: to
            branch on it, perhaps, so that another input may run other layers.
        read: Layers of which a parameter or buffer was used outside the layer.
        changed: Layers that were others when they were called than before the run.
    """

    nodes: list[Node] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    layers_upstream: list[int] = field(default_factory=list)
    values_upstream: list[int] = field(default_factory=list)
    consumers: list[list[int]] = field(default_factory=list)
    outputs: dict[int, str] = field(default_factory=dict)
    activations: int = 0
    module_calls: list[ModuleCall] = field(default_factory=list)
    tensors: dict[str, int] = field(default_factory=dict)
    exposed: dict[int, str] = field(default_factory=dict)
    meets_weights: set[int] = field(default_factory=set)
    visible: dict[str, set[int]] = field(default_factory=dict)
    data_dependent_reads: list[str] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    _bits: dict[object, int] = field(default_factory=dict)
    _results: dict[str, list[int]] = field(default_factory=dict)

    def add(self, node: Node, *, weighted: bool = False) -> int:
        """Append a node and return its index; ``weighted`` counts an operation as a layer of its own."""
        index = len(self.nodes)
        layers, values = 0, 1 << index
        for source in dict.fromkeys(node.inputs):
            layers |= self.layers_upstream[source]
            values |= self.values_upstream[source]
            self.consumers[source].append(index)
        if node.call >= 0 or weighted:
            # The outputs of one call share a bit.
            label = ("call", node.call) if node.call >= 0 else ("operation", index)
            layers |= 1 << self._bits.setdefault(label, len(self._bits))
        if node.role == "activation":
            self.activations |= 1 << index
        self.read |= node.owners
        self.nodes.append(node)
        if node.kind == "layer":
            self._results.setdefault(node.name, []).append(index)
        self.layers_upstream.append(layers)
        self.values_upstream.append(values)
        self.consumers.append([])
        return index

    @cached_property
    def module_calls_of(self) -> dict[str, list[ModuleCall]]:
        """Every call of each module, by its path; looked up once per gate, of which there may be thousands."""
        return _grouped((visit.name, visit) for visit in self.module_calls)

    @cached_property
    def ran(self) -> frozenset[str]:
        """The paths of all modules that were called, and of those that they lie in."""
        found: set[str] = set()
        for path in self.module_calls_of:
            while path not in found:
                found.add(path)
                path = path.rpartition(".")[0]
        return frozenset(found)

    @cached_property
    def calls_of(self) -> dict[str, list[Call]]:
        """Every call of each layer, by its path."""
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            found.setdefault(call.name, []).append(call)
        return found

    @cached_property
    def module_calls_giving(self) -> dict[int, list[ModuleCall]]:
        """The calls of modules below the model whose one output is a node, by the node."""
        return _grouped(
            (visit.outputs[0], visit) for visit in self.module_calls if visit.name and len(visit.outputs) == 1
        )

    @cached_property
    def module_calls_taking(self) -> dict[int, list[ModuleCall]]:
        """The calls of modules below the model whose one input is a node, by the node."""
        return _grouped(
            (visit.inputs[0], visit) for visit in self.module_calls if visit.name and len(visit.inputs) == 1
        )

    @cached_property
    def fewest_rows(self) -> int:
        """The least size of the first axis of any feature map."""
        return min((node.shape[0] for node in self.nodes if node.role == "activation" and node.shape), default=0)

    @cached_property
    def dead(self) -> frozenset[int]:
        """The nodes that lead to no output of the model."""
        return self.dead_without({})

    @cached_property
    def unused_indices(self) -> frozenset[int]:
        """Integers that lead nowhere: where a pooling found its maxima, which nobody asks for.

        Whatever else leads nowhere may be used in a way that was not recorded.
        """
        return frozenset(index for index in self.dead if self.nodes[index].role == "integer_dependent")

    def dead_without(self, lost: Mapping[int, Collection[int]]) -> frozenset[int]:
        """The nodes that lead to no output of the model once some products have lost factors.

        Args:
            lost: Product -> the factors that it loses (its gates).
        """
        living: set[int] = set()
        for index in reversed(range(len(self.nodes))):
            users = [user for user in self.consumers[index] if user in living]
            if index in self.outputs or any(index not in lost.get(user, ()) for user in users):
                living.add(index)
        return frozenset(range(len(self.nodes))) - living

    def bit(self, index: int) -> int:
        """The bit of a layer node in ``layers_upstream``."""
        return 1 << self._bits["call", self.nodes[index].call]

    def results(self, name: str) -> list[int]:
        """Every value that a layer returned, over all its calls."""
        return self._results.get(name, [])

    def is_called_once(self, name: str) -> bool:
        """Whether a layer has one call in the run, which is one of the layer itself."""
        calls = self.calls_of.get(name, [])
        return len(calls) == 1 and not calls[0].implicit

    def why_not_one_plain_call(
        self, name: str, most: Given | None = None, *, taking: bool = False, giving: bool = False
    ) -> str | None:
        """Why what a layer does in the run is not one call, by nobody else looked into, of what its type does; or None.

        Only then may its tensors become others together with what lies before or after it.

        Args:
            name: The layer, which ran.
            most: What such a call may be given; None: that is asked later (``why_given_more``).
            taking: Whether something moves across its input: it must have just one then, and no hook may change it.
            giving: Whether something moves across its result: it must have just one then that anybody uses.
        """
        calls = self.calls_of.get(name, [])
        if len(calls) != 1:
            return f"{name!r} is called {len(calls)} times"
        if calls[0].implicit:
            return f"the weight of {name!r} is used without calling the layer"
        if name in self.changed:
            return f"{name!r} is called with other tensors or settings than those the model holds"
        if name in self.read:
            return f"a tensor of {name!r} is read outside its call"
        if any(_without_batch(self.nodes[i].inner) for i in self.results(name)):
            return f"{name!r}: it is called without a batch axis, so that its channels lie on the first one"
        if taking and calls[0].input_changed_by_hook:
            return f"{name!r}: a forward pre-hook changes what it is given"
        if taking and any(len(self.nodes[i].inputs) != 1 for i in self.results(name)):
            return f"{name!r} takes other inputs, too"
        if giving and self.only_result(name) is None:
            return f"{name!r} returns several values" if self.results(name) else f"{name!r} returns its input"
        return None if most is None else self.why_given_more(name, most)

    def why_given_more(self, name: str, most: Given) -> str | None:
        """Why what is known of a layer does not hold for its one call: it is given more than that; or None."""
        given = self.calls_of[name][0].given
        return None if given.within(most) else f"{name!r} is called with more than its rule was tried with"

    def only_result(self, name: str) -> int | None:
        """The one value of a layer that anybody uses; None where there are several, or it returned its input."""
        results = self.results(name)
        used = [i for i in results if self.consumers[i] or i in self.outputs] or results[:1]
        return used[0] if len(used) == 1 else None

    def seen_outside(self, index: int) -> str | None:
        """What sees a value outside of what was recorded, in words that follow "what is scaled"; or None."""
        return self.outputs.get(index) or self.exposed.get(index)

    def operands(self, index: int) -> list[int]:
        """The inputs of a node that are feature maps: those that depend on the model's input, or passed a layer."""
        sources = dict.fromkeys(self.nodes[index].inputs)
        return [i for i in sources if self.nodes[i].role == "activation" or self.layers_upstream[i]]


def _without_batch(inner: tuple[str, ...]) -> bool:
    """Whether a layer gave its input a batch axis and took it away again; a pooling over one axis does so anyway."""
    return {"unsqueeze", "squeeze"} <= set(inner) and not any("pool" in name for name in inner)


def _grouped(pairs: Iterable[tuple[KeyT, ModuleCall]]) -> dict[KeyT, list[ModuleCall]]:
    """Calls by key, in the order in which they returned."""
    found: dict[KeyT, list[ModuleCall]] = {}
    for key, visit in pairs:
        found.setdefault(key, []).append(visit)
    return found


def first_calls(graph: Graph, names: Iterable[str]) -> list[str]:
    """Layer names, each once, in the order of their first call."""
    wanted = set(names)
    return [name for name in dict.fromkeys(call.name for call in graph.calls) if name in wanted]
