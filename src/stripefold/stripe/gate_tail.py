"""The functions between the last module that computes a gate and the gate: undone, they tell what it must return.

``v = hardsigmoid(self.fc2(...))`` in a block's own forward: no module returns v, but ``fc2`` returns z with v = f(z),
and f can be undone step by step. So a constant v is a constant z in the place of ``fc2``.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stripefold.graph.graph import Graph, Node
from stripefold.graph.operation_names import ARITHMETIC, CLAMPS_BY_OPERAND, PRODUCTS, UNDONE, VIEWS
from stripefold.stripe.gate_products import keeps_order


@dataclass(frozen=True)
class GateTail:
    """What stands between a module and a gate.

    Attributes:
        module: dotted path of the module.
        call: which call of it within one run of the model, from 0.
        calls: how many there are.
        steps: (operation, number) from the gate back to the module.
    """

    module: str
    call: int
    calls: int
    steps: tuple[tuple[str, float], ...]

    def before(self, v: Tensor) -> Tensor:
        """What the module has to return for the gate to be v; of a bounded function, as near as numbers allow."""
        z = v.double()
        for name, number in self.steps:
            z = _undone(name, number, z)
        return z


def tail_of(graph: Graph, gate: int, product: int) -> GateTail | None:
    """The tail of a gate that no module returns, or None.

    Also None where the same code reads the map by a function of its own (pools it, say), which no constant would stop.

    Args:
        graph: of a trace.
        gate: the gate's node.
        product: that of its product, which must not run inside the module.
    """
    steps: list[tuple[str, float]] = []
    index = gate
    while True:
        if steps:
            for visit in sorted(graph.module_calls_giving.get(index, ()), key=lambda visit: (visit.first, -visit.last)):
                if not visit.first <= product < visit.last:
                    calls = len(graph.module_calls_of[visit.name])
                    found = GateTail(visit.name, visit.call, calls, tuple(steps))
                    return None if _reads_a_map(graph, gate, product) else found
        source = _only_source(graph, index)
        if source is None:
            return None
        if not keeps_order(graph, index):
            step = _step(graph.nodes[index])
            if step is None:
                return None
            steps.append(step)
        index = source


def _only_source(graph: Graph, index: int) -> int | None:
    """The one value that an operation takes beside constant bounds, if nothing else uses it."""
    node = graph.nodes[index]
    inputs = node.inputs
    if node.name in CLAMPS_BY_OPERAND:
        inputs = tuple(i for i in inputs if graph.nodes[i].role != "constant")
    if node.kind != "operation" or len(inputs) != 1:
        return None
    # A value that something else uses, too, would change for both; log_sigmoid gives a second one that none uses.
    users = [user for user in graph.consumers[inputs[0]] if graph.consumers[user] or user in graph.outputs]
    return inputs[0] if users == [index] else None


def _reads_a_map(graph: Graph, gate: int, product: int) -> bool:
    """Whether code that computes the gate alone reads a map without calling a module."""
    where = graph.nodes[product].where
    for index in _only_for(graph, gate, product):
        node = graph.nodes[index]
        reads = any(sum(size > 1 for size in graph.nodes[i].shape[1:]) > 1 for i in node.inputs)
        if reads and node.where == where and node.kind == "operation" and node.name not in VIEWS:
            return True
    return False


def _only_for(graph: Graph, gate: int, product: int) -> set[int]:
    """The gate and the nodes behind it that nothing needs once the product has lost it."""
    found: set[int] = set()
    todo = [-gate]  # the last one first: what uses a value comes behind it
    while todo:
        index = -heapq.heappop(todo)
        users = set(graph.consumers[index]) - graph.dead - ({product} if index == gate else set())
        if index not in found and index not in graph.outputs and users <= found:
            found.add(index)
            for source in dict.fromkeys(graph.nodes[index].inputs):
                heapq.heappush(todo, -source)
    return found


def _step(node: Node) -> tuple[str, float] | None:
    if node.name in UNDONE | CLAMPS_BY_OPERAND:
        return node.name, 0.0
    number, alpha, rounding = (node.arguments.get(key) for key in ("other", "alpha", "rounding_mode"))
    if node.name not in ARITHMETIC or not isinstance(number, (int, float)):
        return None
    plain = alpha in (None, 1) and rounding is None and (number or node.name not in PRODUCTS)
    return (node.name, float(number)) if plain else None


def _undone(name: str, number: float, v: Tensor) -> Tensor:
    least = torch.finfo(torch.float32).tiny
    most = 1 - torch.finfo(torch.float64).eps
    if name == "sigmoid":
        return torch.logit(v.clamp(least, most))
    if name == "tanh":
        return torch.atanh(v.clamp(-most, most))
    if name == "hardsigmoid":
        return 6 * v - 3
    if name == "exp":
        return v.clamp(min=least).log()
    if name == "log_sigmoid_forward":
        return v - (-torch.expm1(v.clamp(max=-torch.finfo(torch.float64).eps))).log()
    if name == "neg":
        return -v
    if name == "reciprocal":
        return 1 / v
    if name in ARITHMETIC:
        undo = {"add": v - number, "sub": v + number, "rsub": number - v, "mul": v / (number or math.nan)}
        return undo[name] if name in undo else v * number
    return v  # between its bounds a clamp changes nothing
