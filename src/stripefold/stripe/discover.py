"""Find every dynamic channel attention of a model by what it computes; no class name takes part in the decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from stripefold.graph.graph import Graph
from stripefold.graph.module_calls import ModuleCall
from stripefold.graph.trace import Trace, trace
from stripefold.layers.rule import rule_for
from stripefold.modules.foldable import Foldable
from stripefold.stripe.descriptor import Descriptor, descriptor_of
from stripefold.stripe.gate_axes import groups_of_samples
from stripefold.stripe.gate_products import Product, affine_sum, compact, keeps_order, products
from stripefold.stripe.gate_tail import GateTail, tail_of
from stripefold.stripe.gate_vectors import Expected
from stripefold.stripe.read_on import read_on
from stripefold.stripe.same_place import scaled_axis


@dataclass(frozen=True, kw_only=True)
class ChannelGate:
    """One multiplication of a feature map by a per-channel, input-dependent factor.

    Attributes:
        name: Unique: dotted path of the innermost module in which the product runs; "path#2" for a second one in it.
        where: That module's dotted path, "" for the model itself.
        kind: Its class name, for reading only.
        channels: C, the length of the factor for one sample.
        axis: The channel axis of the scaled value, from 0.
        source: Dotted path of the module whose output is the gate, through views only; None where no module returns it.
        source_call: Which call of that module within one run of the model, from 0.
        source_calls: How many calls of that module there are in one run of the model.
        where_call: Which call of ``where``, from 0.
        where_calls: How many calls of ``where`` there are.
        read_on: ``where`` writes into what it is given, and the model reads that afterwards, beside or instead of what
            ``where`` returns.
        whole: ``where`` is nothing but x -> x * v(x): its one input is the scaled value, its one output the product; or
            that and a summand, where the gate is affine.
        given_axis: Where it is whole: the channel axis of what ``where`` is given; the product may run permuted.
        affine: ``where`` is x -> v(x) x + b(x), with a summand b per channel that depends on the image, too.
        summand: b (C,) where it was made constant.
        sum: The node of the sum of an affine gate, or -1.
        split: Above 1: the gate weighs that many branches, which are summed up (SK, ResNeSt).
        tail: Where no module returns the gate, the last one that computes it, and the functions behind that.
        groups: Above 1: that many groups of the channels lie along the sample axis, (N G, C / G, ...); the gate's
            statistics are those of all C channels.
        product: The product's node in the trace's graph.
        gate: The factor's node.
        scaled: The scaled value's node.
        descriptor: Node of the squeezed value (N, D) that the whole gate is computed from, or -1.
        entry: Dotted path of the first module called with it and nothing else, or None.
        entry_call: Which call of that module within one run of the model, from 0.
        rows_first: The first axis of what the source returns counts the samples.
        run: Which of the recorded runs the nodes belong to.
    """

    name: str
    where: str
    kind: str
    channels: int
    axis: int
    source: str | None
    source_call: int
    where_call: int
    whole: bool
    split: int
    product: int
    gate: int
    scaled: int
    descriptor: int = -1
    entry: str | None = None
    entry_call: int = 0
    rows_first: bool = True
    source_calls: int = 1
    where_calls: int = 1
    read_on: bool = False
    groups: int = 1
    tail: GateTail | None = None
    run: int = 0
    given_axis: int = -1
    affine: bool = False
    summand: tuple[float, ...] = ()
    sum: int = -1

    @property
    def end(self) -> int:
        """The node of what it gives."""
        return self.sum if self.affine else self.product


@dataclass(frozen=True, kw_only=True)
class NotAGate:
    """A multiplication of two values that depend on the image, and why it is no channel gate.

    Attributes:
        name: Dotted path of the module in which it runs.
        shape: The product's shape.
        factor: The smaller factor's shape.
        why: The reason, in words.
    """

    name: str
    shape: tuple[int, ...]
    factor: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Discovery:
    """What the traced runs show, one for each example.

    Attributes:
        runs: For each run its channel gates, in the order of computation; the same gate has the same name in each.
        others: Every other product of two values that depend on the image.
        trace: The runs, for questions about what stands before and behind a gate.
    """

    runs: tuple[tuple[ChannelGate, ...], ...]
    others: tuple[NotAGate, ...]
    trace: Trace

    @cached_property
    def gates(self) -> tuple[ChannelGate, ...]:
        """Every gate, as it stands in the first run that has it."""
        found: dict[str, ChannelGate] = {}
        for gate in (gate for run in self.runs for gate in run):
            found.setdefault(gate.name, gate)
        return tuple(found.values())

    def graph_of(self, gate: ChannelGate) -> Graph:
        """The run to which the nodes of a gate belong."""
        return self.trace.graphs[gate.run]

    def in_runs(self, name: str) -> list[ChannelGate | None]:
        """A gate as it stands in each run; None where it does not run."""
        return [run.get(name) for run in self._by_name]

    @cached_property
    def _by_name(self) -> list[dict[str, ChannelGate]]:
        return [{gate.name: gate for gate in reversed(run)} for run in self.runs]

    def changed(self, change: Callable[[ChannelGate], ChannelGate]) -> Discovery:
        """The same with every gate of every run changed."""
        return replace(self, runs=tuple(tuple(change(gate) for gate in run) for run in self.runs))


def discover(model: nn.Module, example: Any) -> Discovery:
    """Find the channel gates of a model; it stays as it was.

    Args:
        model: Any model; a copy is run, in evaluation mode.
        example: A tensor, a tuple of positional or a mapping of keyword arguments; at least two samples, and maps of
            more than one position, tell gates from maps best. Or a list of such: the gates of all runs are found.

    Raises:
        TraceError: The model does not run on the example.
    """
    recorded = trace(model, example, is_layer=_is_layer)
    modules = dict(model.named_modules())
    layer_axes = _layer_axes(modules)
    runs: list[list[ChannelGate]] = []
    others: dict[tuple[str, str], list[NotAGate]] = {}
    for run, graph in enumerate(recorded.graphs):
        gates, rest = _in_run(graph, run, modules, layer_axes)
        runs.append(gates)
        for key in [key for key in dict.fromkeys((other.name, other.why) for other in rest) if key not in others]:
            others[key] = [other for other in rest if (other.name, other.why) == key]
    found = Discovery(_named(recorded, runs), tuple(other for each in others.values() for other in each), recorded)
    written = {visit.name for graph in recorded.graphs for visit in graph.module_calls if visit.written}
    suspects = {gate.where for gate in found.gates if gate.whole and gate.where in written}
    read = read_on(model, example, suspects, is_layer=_is_layer)
    return found.changed(lambda gate: replace(gate, read_on=gate.where in read))


def _in_run(
    graph: Graph, run: int, modules: Mapping[str, nn.Module], layer_axes: Mapping[str, int]
) -> tuple[list[ChannelGate], list[NotAGate]]:
    """The gates of one run, named after their modules alone, and the other products."""
    found: list[ChannelGate] = []
    others: list[NotAGate] = []
    sums: set[int] = set()
    for product in products(graph, layer_axes):
        node = graph.nodes[product.node]
        if product.node in sums:
            continue  # the summand of an affine gate
        if product.why:
            factor = graph.nodes[compact(graph, product.factor)].shape
            others.append(NotAGate(name=node.where, shape=node.shape, factor=factor, why=product.why))
            continue
        groups = groups_of_samples(graph, product.scaled, product.axis, layer_axes)
        found.append(replace(_described(graph, product, (modules, layer_axes), groups), run=run))
        sums.add(found[-1].end)
    return found, others + [NotAGate(name=where, shape=(), factor=(), why=why) for where, why in _unseen(graph)]


def _named(recorded: Trace, runs: Iterable[Iterable[ChannelGate]]) -> tuple[tuple[ChannelGate, ...], ...]:
    """The gates of each run with names of their own: the same name for what looks the same in two runs."""
    names: dict[object, str] = {}
    counts: Counter[str] = Counter()
    named: list[tuple[ChannelGate, ...]] = []
    for run in runs:
        alike: Counter[object] = Counter()
        gates = []
        for gate in run:
            look = _look(recorded.graphs[gate.run], gate)
            alike[look] += 1
            key = look, alike[look]
            if key not in names:
                counts[gate.where] += 1
                number = counts[gate.where]
                names[key] = gate.where if number == 1 else f"{gate.where}#{number}"
            gates.append(replace(gate, name=names[key]))
        named.append(tuple(gates))
    return tuple(named)


def _look(graph: Graph, gate: ChannelGate) -> object:
    """What a gate is known by from run to run, and recorded by from batch to batch."""
    own = None
    if gate.source is None:
        expected = Expected(graph, gate)
        own = expected.signature, expected.position, expected.of_its_kind, expected.factor
    end = len(graph.nodes[gate.product].shape) - gate.axis
    same = replace(gate, name="", product=-1, gate=-1, scaled=-1, descriptor=-1, run=0, sum=-1)
    return same, own, end


def _unseen(graph: Graph) -> Iterator[tuple[str, str]]:
    """Where values that depend on the image leave what can be followed, and why that matters."""
    for where in dict.fromkeys(graph.data_dependent_reads):
        yield where, "it reads values that depend on the image into Python: what it scales by them is not seen"
    roles = {graph.nodes[index].role for index, why in graph.outputs.items() if "returned" in why}
    if roles == {"constant"} and any(node.kind == "input" and node.role == "activation" for node in graph.nodes):
        yield "", "nothing that it returns depends on its input as far as torch can see: numpy computes a part of it"


def _is_layer(module: nn.Module) -> bool:
    # A site is opened up: the dynamic attention on it is what is looked for.
    return not isinstance(module, Foldable) and rule_for(module) is not None


def _layer_axes(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    rules = {name: rule_for(module) for name, module in modules.items()}
    return {name: rule.axis for name, rule in rules.items() if rule is not None}


def _described(
    graph: Graph, product: Product, known: tuple[Mapping[str, nn.Module], Mapping[str, int]], groups: int
) -> ChannelGate:
    modules, layer_axes = known
    where = graph.nodes[product.node].where
    shape = graph.nodes[product.node].shape
    channels = shape[product.axis] * product.split * groups
    call = _call_of(graph, product.node, where)
    source = _source(graph, product)
    descriptor = descriptor_of(graph, product.factor) if product.split == 1 else Descriptor()
    total = affine_sum(graph, product, layer_axes) if product.split == groups == 1 else -1
    affine_axis = _whole_axis(graph, replace(product, node=total), call) if total >= 0 else None
    affine = affine_axis is not None
    whole_axis = affine_axis if affine else _whole_axis(graph, product, call)
    return ChannelGate(
        name=where,
        where=where,
        kind=type(modules[where]).__name__,
        channels=channels,
        axis=product.axis,
        source=source.name if source is not None else None,
        source_call=source.call if source is not None else 0,
        where_call=call.call if call is not None else 0,
        source_calls=1 if source is None else _times(graph, source.name),
        where_calls=_times(graph, where),
        whole=whole_axis is not None,
        given_axis=-1 if whole_axis is None else whole_axis,
        affine=affine,
        sum=total if affine else -1,
        split=product.split,
        groups=groups,
        tail=tail_of(graph, product.factor, product.node) if source is None else None,
        product=product.node,
        gate=product.factor,
        scaled=product.scaled,
        descriptor=descriptor.node,
        entry=descriptor.entry,
        entry_call=descriptor.entry_call,
        rows_first=groups == 1 if source is None else _has_rows_first(graph, source.outputs[0], channels),
    )


def _call_of(graph: Graph, node: int, name: str) -> ModuleCall | None:
    """The innermost call of a module during which a value was made."""
    calls = [visit for visit in graph.module_calls_of.get(name, []) if visit.first <= node < visit.last]
    return min(calls, key=lambda visit: visit.last - visit.first, default=None)


def _times(graph: Graph, name: str) -> int:
    return len(graph.module_calls_of.get(name, []))


def _source(graph: Graph, product: Product) -> ModuleCall | None:
    """The call whose one output is the gate; the one nearest to the computation, without broadcast dimensions."""
    chain = [product.factor]
    while keeps_order(graph, chain[-1]):
        chain.append(graph.nodes[chain[-1]].inputs[0])
    given = (graph.module_calls_giving.get(index) for index in reversed(chain))
    return next((module_calls[0] for module_calls in given if module_calls), None)


def _has_rows_first(graph: Graph, index: int, channels: int) -> bool:
    node = graph.nodes[index]
    return bool(node.shape) and node.shape[0] * channels == node.unbroadcast_numel


def _whole_axis(graph: Graph, product: Product, call: ModuleCall | None) -> int | None:
    """The axis of what a call is given along which its result is that, scaled; None where it does anything else."""
    if call is None or len(call.inputs) != 1 or len(call.outputs) != 1:
        return None
    return scaled_axis(graph, (call.inputs[0], product.scaled), (product.node, call.outputs[0]), product.axis)
