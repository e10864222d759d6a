"""Gates in ``torch.fx`` graph modules: each gets a module of its own to be held by, and goes with all that computed it.

A traced, exported or converted model computes its gates in one long forward, where no module returns them. But its
graph can be rewritten: a ``GateProbe``, which returns what it is given, is put between a gate and its product. So the
gate has a source, as in any other model. When it is baked, the product goes (or its factor becomes a parameter), and
every node that nothing uses any more.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from stripefold.baking.modules import ConstantGate
from stripefold.graph.graph import Graph
from stripefold.graph.operation_names import BROADCASTS, MULTIPLICATIONS, MULTIPLYING_METHODS, operation_name
from stripefold.modules.example import Example, example_to, examples_of, run_example
from stripefold.modules.modes_of_torch import ThreadMode
from stripefold.modules.modules import first_parameter
from stripefold.modules.preserve_state import on_copies
from stripefold.modules.tensors import storage_of
from stripefold.stripe.discover import ChannelGate, Discovery, discover

_PRODUCTS: tuple[object, ...] = (
    operator.mul, operator.imul, torch.mul, torch.multiply, torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor,
    *MULTIPLYING_METHODS,
)  # fmt: skip
_NAME = "stripefold_gate"


class GateProbe(nn.Module):
    """Returns the gate that it is given, so that a module returns it.

    Args:
        shape: of the gate for one sample.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, gate: Tensor) -> Tensor:
        """The gate itself."""
        return gate


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Where a probe goes; positions, because the nodes of a copy are other objects.

    Attributes:
        graph: dotted path of the graph module.
        product: position of the product among its nodes.
        gate: position of the gate.
        taken: position of what the product takes: the gate, or that expanded to the shape of a map.
        shape: of the gate for one sample.
        name: of the probe in the graph module.
    """

    graph: str
    product: int
    gate: int
    taken: int
    shape: tuple[int, ...]
    name: str

    @property
    def path(self) -> str:
        """Dotted path of the probe in the model."""
        return f"{self.graph}.{self.name}" if self.graph else self.name


def discover_probed_(model: nn.Module, example: Example) -> tuple[Discovery, tuple[Probe, ...]]:
    """Discover the gates of a model whose graph modules get probes, in place.

    Args:
        model: a copy to work on.
        example: an input.

    Returns:
        The gates, those in graph modules with the probe as their source; and the probes.
    """
    found = discover(model, example)
    graphs = {g.where for g in found.gates if isinstance(model.get_submodule(g.where), fx.GraphModule)}
    if not graphs:
        return found, ()
    probes: dict[str, Probe] = {}
    for path in sorted(graphs):
        for run, one in enumerate(examples_of(example)):
            gates = [gate for gate in found.gates if (gate.where, gate.run) == (path, run)]
            probes |= _probes_in(model, found.trace.graphs[run], gates, one, len(probes)) if gates else {}
    insert_probes_(model, tuple(probes.values()))
    again = discover(model, example)
    sourced = again.changed(lambda gate: _sourced(again.graph_of(gate), gate, probes.get(gate.name)))
    return sourced, tuple(probes.values())


def insert_probes_(model: nn.Module, probes: Sequence[Probe]) -> None:
    """Put probes into the graph modules of a model, in place."""
    places = [(probe, list(_graph(model, probe.graph).graph.nodes)) for probe in probes]
    for probe, nodes in places:
        module = _graph(model, probe.graph)
        product = nodes[probe.product]
        module.add_submodule(probe.name, GateProbe(probe.shape).train(module.training))
        with module.graph.inserting_before(product):
            made = module.graph.call_module(probe.name, (nodes[probe.gate],))
        product.replace_input_with(nodes[probe.taken], made)
        _sweep(module, nodes[probe.taken])
        module.recompile()


def drop_probes_(model: nn.Module) -> None:
    """Take all probes out again: gates that stay dynamic are then computed as before."""
    for module in list(model.modules()):
        if isinstance(module, fx.GraphModule):
            for node in list(module.graph.nodes):
                if node.op == "call_module" and isinstance(module.get_submodule(node.target), GateProbe):
                    _drop(module, node)
                    module.recompile()


def probe_of(model: nn.Module, gate: ChannelGate) -> tuple[str, tuple[int, ...]] | None:
    """The path of the probe that returns a gate, or None; and where its product is more than one, the gate's shape."""
    probe = None if gate.source is None else model.get_submodule(gate.source)
    if gate.source is None or not isinstance(probe, GateProbe):
        return None
    (product,) = _node_of(_graph(model, gate.where), gate.source.rpartition(".")[2]).users
    return gate.source, () if _is_plain(product) else probe.shape


def _is_plain(product: fx.Node) -> bool:
    return product.target in _PRODUCTS and len(product.all_input_nodes) == 2


def fold_out_(model: nn.Module, path: str, v: Tensor | None, gate: tuple[int, tuple[int, ...]]) -> int:
    """Replace a gate by a constant, in place, and remove what computed it.

    Args:
        model: with probes.
        path: of the gate's probe.
        v: what stays in the gate's place (C,); None: its product goes, because the constant was folded.
        gate: the channel axis of its product counted from the end (1 for the last), and the gate's shape for one
            sample where what takes it is no plain product.

    Returns:
        How many nodes that computed it nothing needs and cannot be removed: they write into what others read.
    """
    where, _, name = path.rpartition(".")
    module = _graph(model, where)
    probe = _node_of(module, name)
    (product,) = probe.users
    source = probe.args[0]
    assert isinstance(source, fx.Node)
    other = next(node for node in product.all_input_nodes if node is not probe)
    if v is None:
        product.replace_all_uses_with(other)
        module.graph.erase_node(product)
    else:
        with module.graph.inserting_before(product):
            probe.replace_all_uses_with(_constant_node(module, name, v, other, gate))
    module.graph.erase_node(probe)
    module.delete_submodule(name)
    left = _sweep(module, source)
    module.recompile()
    return left


def _constant_node(
    module: fx.GraphModule, name: str, v: Tensor, other: fx.Node, gate: tuple[int, tuple[int, ...]]
) -> fx.Node:
    """A node that gives a constant: a parameter in a plain product, else as many rows as the product has samples."""
    from_end, shape = gate
    key = name.replace(_NAME, "stripefold_scale")
    made: fx.Node
    if not shape:
        module.register_parameter(key, nn.Parameter(v.reshape(-1, *(1,) * (from_end - 1)).clone()))
        made = module.graph.get_attr(key)
        return made
    module.add_submodule(key, ConstantGate(v, shape).train(module.training))
    return module.graph.call_module(key, (other,))


def _sweep(module: fx.GraphModule, start: fx.Node) -> int:
    """Erase a node and what it was computed from, as far as nothing else uses it; how many unused ones had to stay."""
    todo, left = [start], 0
    while todo:
        node = todo.pop()
        if node.users or node.op in ("placeholder", "output"):
            continue
        if _writes_into_others(module, node):
            left += 1
            continue
        sources = list(node.all_input_nodes)
        module.graph.erase_node(node)
        _forget(module, node)
        todo += sources
    return left


def _writes_into_others(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node changes a value in place that others read."""
    target, name = node.target, _name(node)
    in_place = node.op != "call_module" and name.endswith("_") and not name.endswith("__")
    in_place = in_place or bool(node.kwargs.get("inplace")) or name in ("imul", "iadd", "isub", "itruediv")
    if node.op == "call_module":
        in_place = bool(getattr(module.get_submodule(str(target)), "inplace", False))
    return in_place and any(len(source.users) > 1 for source in node.all_input_nodes[:1])


def _name(node: fx.Node) -> str:
    """What a node calls, without the overload."""
    target = node.target
    return target if isinstance(target, str) else str(getattr(target, "__name__", "")).partition(".")[0]


def _forget(module: fx.GraphModule, node: fx.Node) -> None:
    """Delete a module, parameter or buffer that an erased node used, if no other node does."""
    if node.op not in ("call_module", "get_attr"):
        return
    path = str(node.target)
    used = {str(other.target) for other in module.graph.nodes if other.op in ("call_module", "get_attr")}
    while path and not any(u == path or u.startswith(f"{path}.") or path.startswith(f"{u}.") for u in used):
        above, _, name = path.rpartition(".")
        parent = module.get_submodule(above)
        if hasattr(parent, name):
            delattr(parent, name)
        if parent is module or any(True for _ in parent.children()) or any(True for _ in parent.parameters()):
            break
        path = above


def _drop(module: fx.GraphModule, node: fx.Node) -> None:
    name = str(node.target)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.replace_all_uses_with(source)
    module.graph.erase_node(node)
    module.delete_submodule(name)


def _graph(model: nn.Module, path: str) -> fx.GraphModule:
    module = model.get_submodule(path)
    assert isinstance(module, fx.GraphModule)
    return module


def _node_of(module: fx.GraphModule, name: str) -> fx.Node:
    found: fx.Node = next(n for n in module.graph.nodes if n.op == "call_module" and n.target == name)
    return found


def _sourced(graph: Graph, gate: ChannelGate, probe: Probe | None) -> ChannelGate:
    if probe is None:
        return gate
    node = graph.nodes[gate.gate]
    rows = bool(node.shape) and node.shape[0] * gate.channels == node.unbroadcast_numel
    return replace(gate, source=probe.path, source_call=0, source_calls=1, rows_first=rows)


# Which node of a graph module is which product of a trace.


@dataclass(frozen=True)
class _Seen:
    """A multiplication that ran: its node, its two factors, and the values of all nodes."""

    node: fx.Node
    factors: tuple[Any, ...]
    values: dict[fx.Node, Any]


class _Watch(ThreadMode):
    """Notes the multiplications of one node of a graph at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: tuple[fx.Node, dict[fx.Node, Any]] | None = None
        self.seen: list[_Seen] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.now is not None and operation_name(func) in MULTIPLICATIONS:
            self.seen.append(_Seen(self.now[0], tuple(args[-2:]), self.now[1]))
        return func(*args, **(kwargs or {}))


class _Interpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, watch: _Watch) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._watch = watch

    def run_node(self, n: fx.Node) -> Any:
        """A node, watched unless a module of its own runs."""
        self._watch.now = None if n.op == "call_module" else (n, self.env)
        return super().run_node(n)


def _probes_in(
    model: nn.Module, graph: Graph, gates: Sequence[ChannelGate], example: Example, number: int
) -> dict[str, Probe]:
    """Gate -> its probe, of the gates of one graph module that runs once."""
    path = gates[0].where
    module = _graph(model, path)
    calls = [visit for visit in graph.module_calls if visit.name == path]
    if len(calls) != 1:
        return {}
    nodes = range(calls[0].first, calls[0].last)
    traced = [i for i in nodes if graph.nodes[i].where == path and graph.nodes[i].name in MULTIPLICATIONS]
    traced = [i for i in traced if graph.nodes[i].kind != "layer"]
    seen = _multiplications(model, path, example)
    if len(seen) != len(traced):
        return {}
    positions = {node: k for k, node in enumerate(module.graph.nodes)}
    probes: dict[str, Probe] = {}
    for gate in gates:
        if gate.split > 1 or gate.groups > 1:
            continue
        one = seen[traced.index(gate.product)]
        taken = _argument(one, graph.nodes[gate.product].inputs[-2:].index(gate.gate))
        arg = None if taken is None else _unexpanded(one, taken, gate)
        if taken is not None and arg is not None:
            probes[gate.name] = Probe(
                graph=path,
                product=positions[one.node],
                gate=positions[arg],
                taken=positions[taken],
                shape=tuple(one.values[arg].shape[1:]),
                name=f"{_NAME}_{number + len(probes)}",
            )
    return probes


def _argument(seen: _Seen, which: int) -> fx.Node | None:
    """What a node was given that became one of its factors: the one value on its memory."""
    factor = seen.factors[which]
    given = [(node, seen.values[node]) for node in seen.node.all_input_nodes]
    fitting = [
        node
        for node, value in given
        if isinstance(value, Tensor) and isinstance(factor, Tensor) and storage_of(value) == storage_of(factor)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _unexpanded(seen: _Seen, node: fx.Node, gate: ChannelGate) -> fx.Node | None:
    """A gate before it was expanded to the shape of the map: one number per channel and sample, or None."""
    plain = _is_plain(seen.node)
    while plain and _name(node) in BROADCASTS and isinstance(node.args[0], fx.Node):
        source = node.args[0]
        if seen.values[source].dim() != seen.values[node].dim():
            break
        node = source
    value = seen.values[node]
    return node if value.dim() > 1 and value.numel() == value.shape[0] * gate.channels else None


def _multiplications(model: nn.Module, path: str, example: Example) -> list[_Seen]:
    """Those of the own code of a graph module, in order; none where it is called by keyword."""

    def watched(copied: nn.Module) -> list[_Seen]:
        like = first_parameter(copied)
        inputs = example_to(example, torch.device("cpu") if like is None else like.device, None)
        given: list[tuple[Any, Any]] = []
        module = _graph(copied, path)
        module.register_forward_pre_hook(lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True)
        run_example(copied, inputs)
        if len(given) != 1 or given[0][1]:
            return []
        watch = _Watch()
        with watch:
            _Interpreter(module, watch).run(*given[0][0])
        return watch.seen

    return on_copies(watched, model)
