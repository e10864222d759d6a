"""Which module of a model a constant replaces: the whole attention, or the part of it that returns the gate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from stripefold.asr.gate import DynamicGate
from stripefold.asr.site import Site
from stripefold.baking.graph_modules import probe_of
from stripefold.graph.graph import Graph
from stripefold.graph.module_calls import ModuleCall
from stripefold.graph.operation_names import IN_ORDER
from stripefold.stripe.discover import ChannelGate, Discovery


@dataclass(frozen=True, kw_only=True)
class ReplacedModule:
    """What is replaced.

    Attributes:
        path: dotted path of the module.
        whole: it is x -> x * v(x) and nothing else, so that it disappears where the constant folds; otherwise it
            returns the gate, and the product behind it stays.
        axis: the channel axis of the scaled value, -1 where it is the last.
        shape: of what a module that returns the gate returns for one sample.
        site: dotted path of the site of ours around it, or None.
        in_graph: it is the probe of a gate in a ``torch.fx`` graph; ``whole`` where what it scales is a plain product.
    """

    path: str
    whole: bool
    axis: int
    shape: tuple[int, ...] = ()
    site: str | None = None
    in_graph: bool = False


def find_replaced_module(model: nn.Module, discovery: Discovery, gate: ChannelGate) -> ReplacedModule | str:
    """The module that a gate's constant replaces in every run, or why there is none, in words."""
    found: ReplacedModule | str = _place_in(model, discovery.graph_of(gate), gate)
    if isinstance(found, str):
        return found
    for graph, own in zip(discovery.trace.graphs, discovery.in_runs(gate.name), strict=True):
        if own is None and found.path in graph.ran:
            return f"{found.path!r} also runs on an example on which it does not give this gate"
        if own is not None and _place_in(model, graph, own) != found:
            return "its code is another one on another example"
    return found


def _place_in(model: nn.Module, graph: Graph, gate: ChannelGate) -> ReplacedModule | str:
    if gate.split > 1:
        return f"it weighs {gate.split} branches that are summed up: not a scale of one value"
    if gate.groups > 1:
        return f"its channels lie in {gate.groups} groups along the sample axis, where one constant cannot reach them"
    probe = probe_of(model, gate)
    if probe is not None:
        path, shape = probe
        return ReplacedModule(path=path, whole=not shape, axis=_axis(graph, gate), shape=shape, in_graph=True)
    site = _site_around(model, gate.where)
    if gate.affine and site is not None:
        return f"the attention on {site!r} adds a value that depends on the image, too"
    if gate.whole:
        if not gate.where:
            return "the model itself is the attention: nothing would be left of it"
        times = _calls(graph, gate.where)
        if _has_static_gates(model, site):
            return f"static gates stand on {site!r}, too: fold them first, which leaves the dynamic attention in place"
        if times > 1:
            return f"{gate.where!r} is called {times} times: one constant cannot stand for all of them"
        if not all(visit.alone for visit in graph.module_calls_of.get(gate.where, ())):
            return (
                f"{gate.where!r} is called with more than the feature map, or by keyword, and what would stand in its "
                "place takes the feature map alone: call it as attention(x)"
            )
        given = graph.module_calls_of[gate.where][0].inputs[0]
        axis = -1 if gate.given_axis == len(graph.nodes[given].shape) - 1 else gate.given_axis
        return ReplacedModule(path=gate.where, whole=True, axis=axis, site=site)
    return _returning(graph, gate)


def dynamic_around(model: nn.Module, path: str) -> DynamicGate | None:
    """The dynamic gate of ours that a module is (a part of), or None."""
    while path:
        module = model.get_submodule(path)
        if isinstance(module, DynamicGate):
            return module
        path = path.rpartition(".")[0]
    return None


def _returning(graph: Graph, gate: ChannelGate) -> ReplacedModule | str:
    """The outermost module whose one output is the gate."""
    chain = [gate.gate]
    while (node := graph.nodes[chain[-1]]).kind == "operation" and node.name in IN_ORDER and len(node.inputs) == 1:
        chain.append(node.inputs[0])
    module_calls = [v for index in chain for v in graph.module_calls_giving.get(index, ())]
    module_calls = [v for v in module_calls if not v.first <= gate.product < v.last]
    if not module_calls and gate.tail is not None:
        module_calls = [v for v in graph.module_calls_of.get(gate.tail.module, ()) if v.call == gate.tail.call]
    if not module_calls:
        return (
            f"no module returns the gate: {gate.where or 'the model'!r} computes it in its own forward; move that "
            "computation into a module of its own, an nn.Sequential say"
        )
    visit = min(module_calls, key=lambda v: (v.first, -v.last))
    if _calls(graph, visit.name) > 1:
        return f"{visit.name!r}, which returns the gate, is called {_calls(graph, visit.name)} times"
    shape = graph.nodes[visit.outputs[0]].shape
    batch = graph.nodes[visit.inputs[0]].shape[0] if _has_batch(graph, visit) else -1
    if shape[0] != batch or math.prod(shape[1:]) != gate.channels:
        return f"{visit.name!r} returns the gate in the shape {shape}, in which samples and channels are not told apart"
    return ReplacedModule(path=visit.name, whole=False, axis=_axis(graph, gate), shape=shape[1:])


def _axis(graph: Graph, gate: ChannelGate) -> int:
    return -1 if gate.axis == len(graph.nodes[gate.product].shape) - 1 else gate.axis


def _has_batch(graph: Graph, visit: ModuleCall) -> bool:
    return bool(visit.inputs) and len(graph.nodes[visit.inputs[0]].shape) > 0


def _calls(graph: Graph, name: str) -> int:
    return len(graph.module_calls_of.get(name, ()))


def _has_static_gates(model: nn.Module, path: str | None) -> bool:
    site = None if path is None else model.get_submodule(path)
    return isinstance(site, Site) and bool(site.static_gates)


def _site_around(model: nn.Module, path: str) -> str | None:
    """The site of ours whose dynamic attention a module is (a part of), or None."""
    parts = path.split(".")
    for length in range(len(parts), -1, -1):
        name = ".".join(parts[:length])
        if isinstance(model.get_submodule(name), Site):
            return name
    return None
