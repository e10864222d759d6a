"""The functions between the last module that computes a gate and the gate: undone, they tell what it must return.

``v = hardsigmoid(self.fc2(...))`` in a block's own forward: no module returns v, but ``fc2`` returns z with v = f(z),
and f can be undone step by step. So a constant v is a constant z in the place of ``fc2``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stripefold.graph.graph import Graph, Node
from stripefold.graph.operation_names import ARITHMETIC, BOUNDING, CLAMPS_BY_OPERAND, PRODUCTS, VIEWS
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
            z = _UNDO[name](z, number)
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
    return inputs[0] if users == [index] and inputs[0] not in graph.outputs else None


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
    """The gate and the nodes upstream of it that nothing needs once the product has lost it."""
    found: set[int] = set()
    todo = [-gate]  # the last one first: what uses a value comes later
    while todo:
        index = -heapq.heappop(todo)
        users = set(graph.consumers[index]) - graph.dead - ({product} if index == gate else set())
        if index not in found and index not in graph.outputs and users <= found:
            found.add(index)
            for source in dict.fromkeys(graph.nodes[index].inputs):
                heapq.heappush(todo, -source)
    return found


def _step(node: Node) -> tuple[str, float] | None:
    if node.name not in _UNDO:
        return None
    if node.name not in ARITHMETIC:
        return node.name, 0.0
    number, alpha, rounding = (node.arguments.get(key) for key in ("other", "alpha", "rounding_mode"))
    if not isinstance(number, (int, float)):
        return None
    plain = alpha in (None, 1) and rounding is None and (number or node.name not in PRODUCTS)
    return (node.name, float(number)) if plain else None


def _log_of_sigmoid_undone(v: Tensor, number: float) -> Tensor:
    del number
    return v - (-torch.expm1(v.clamp(max=-torch.finfo(torch.float64).eps))).log()


_LEAST = torch.finfo(torch.float32).tiny
_MOST = 1 - torch.finfo(torch.float64).eps
_UNDO: dict[str, Callable[[Tensor, float], Tensor]] = {
    **dict.fromkeys(BOUNDING, lambda v, _: v),
    "sigmoid": lambda v, _: torch.logit(v.clamp(_LEAST, _MOST)),
    "tanh": lambda v, _: torch.atanh(v.clamp(-_MOST, _MOST)),
    "hardsigmoid": lambda v, _: 6 * v - 3,
    "exp": lambda v, _: v.clamp(min=_LEAST).log(),
    "log_sigmoid_forward": _log_of_sigmoid_undone,
    "neg": lambda v, _: -v,
    "reciprocal": lambda v, _: 1 / v,
    "add": lambda v, number: v - number,
    "sub": lambda v, number: v + number,
    "rsub": lambda v, number: number - v,
    "mul": lambda v, number: v / number,
    "div": lambda v, number: v * number,
}
"""What can be undone between a module and its gate -> (what it gave, its number) -> what it was given."""
