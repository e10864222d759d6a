"""Record the gates of a model while it runs: hooks where a module returns the gate, a dispatch mode where none does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from stripefold.attention.base import ChannelAttention
from stripefold.stripe.discover import ChannelGate, Discovery
from stripefold.stripe.product_mode import watching_products
from stripefold.stripe.values import Signature, compact_shape, signature, traced_signature, vectors
from stripefold.surgery.graph import Graph
from stripefold.surgery.values import tensors_in


class Recording:
    """The scale vectors of the batch that runs.

    Attributes:
        scales: Gate (its position in the discovery) -> (rows, C) float64.
        dtypes: Gate -> the dtype in which the model computed it.
        descriptors: Gate -> (rows, D) float64, where a module is called with its descriptor.
        products: Per product that is read by a dispatch mode: gate -> how many of its signature ran in its call.
    """

    def __init__(self, discovery: Discovery) -> None:
        self.gates = discovery.gates
        self.graph: Graph = discovery.trace.graph
        self.scales: dict[int, Tensor] = {}
        self.dtypes: dict[int, str] = {}
        self.descriptors: dict[int, Tensor] = {}
        self.products: Counter[int] = Counter()
        self._calls: Counter[str] = Counter()
        self._expected = {i: _Expected(self.graph, gate) for i, gate in enumerate(self.gates) if gate.source is None}

    def start(self) -> None:
        """A new batch: forget the last one."""
        for kept in (self.scales, self.descriptors, self.products, self._calls):
            kept.clear()

    def differing(self) -> list[int]:
        """Gates whose product could not be told apart: another number of its kind ran than in the trace."""
        return [i for i, e in self._expected.items() if i in self.scales and self.products[i] != e.of_its_kind]

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Hooks and modes are on the model inside, and gone afterwards, whatever was raised."""
        modules = dict(model.named_modules())
        with ExitStack() as stack:
            for source in dict.fromkeys(gate.source for gate in self.gates if gate.source is not None):
                handle = modules[source].register_forward_hook(self._source_hook(source))
                stack.callback(handle.remove)
            for entry in dict.fromkeys(gate.entry for gate in self.gates if gate.entry is not None):
                handle = modules[entry].register_forward_pre_hook(self._entry_hook(entry), with_kwargs=True)
                stack.callback(handle.remove)
            for i, gate in enumerate(self.gates):
                if gate.entry is None and isinstance(modules[gate.where], ChannelAttention):
                    handle = modules[gate.where].register_forward_pre_hook(self._squeeze_hook(i))
                    stack.callback(handle.remove)
            for where in dict.fromkeys(self.gates[i].where for i in self._expected):
                stack.enter_context(self._product_watch(where, modules[where]))
            yield

    def _next_call(self, label: str) -> int:
        self._calls[label] += 1
        return self._calls[label] - 1

    def _source_hook(self, source: str) -> Callable[..., None]:
        numbered = {i: gate for i, gate in enumerate(self.gates) if gate.source == source}

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            call = self._next_call(f"source {source}")
            for i, gate in numbered.items():
                if gate.source_call == call:
                    self._take(i, next(tensors_in(output)), batched=gate.rows_first)

        return hook

    def _entry_hook(self, entry: str) -> Callable[..., None]:
        numbered = {i: gate for i, gate in enumerate(self.gates) if gate.entry == entry}

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            call = self._next_call(f"entry {entry}")
            for i, gate in numbered.items():
                value = next(tensors_in((args, kwargs)), None)
                if gate.entry_call == call and value is not None:
                    width = self.graph.nodes[gate.descriptor].spread // self.graph.nodes[gate.descriptor].shape[0]
                    self.descriptors[i] = vectors(value, width, gate.name)

        return hook

    def _squeeze_hook(self, index: int) -> Callable[..., None]:
        """An attention of ours says itself what its descriptor is, though no module of its own is called with it."""
        gate = self.gates[index]

        def hook(module: nn.Module, args: Any) -> None:
            if self._next_call(f"squeeze {index}") == gate.where_call and isinstance(module, ChannelAttention):
                descriptor = module.squeeze(args[0]).flatten(1)
                self.descriptors[index] = vectors(descriptor, descriptor.shape[1], gate.name)

        return hook

    def _product_watch(self, where: str, module: nn.Module) -> Any:
        numbered = {i: gate for i, gate in enumerate(self.gates) if i in self._expected and gate.where == where}
        call = -1

        def enter() -> None:
            nonlocal call
            call = self._next_call(f"where {where}")

        def see(first: Tensor, second: Tensor) -> None:
            shapes = compact_shape(first), compact_shape(second)
            found = signature(*shapes)
            for i, gate in numbered.items():
                expected = self._expected[i]
                if gate.where_call == call and found == expected.signature:
                    if self.products[i] == expected.position:
                        self._take(i, (first, second)[expected.factor], batched=True)
                    self.products[i] += 1

        return watching_products(module, enter, see)

    def _take(self, index: int, tensor: Tensor, *, batched: bool) -> None:
        gate = self.gates[index]
        self.scales[index] = vectors(tensor, gate.channels, gate.name, batched=batched)
        self.dtypes[index] = str(tensor.dtype).removeprefix("torch.")


class _Expected:
    """How a gate's product is recognised among those of the module in which it stands.

    Attributes:
        signature: By shape.
        position: How many products of that shape run before it in the call.
        of_its_kind: How many run in the call.
        factor: Whether the first or the second factor is the gate.
    """

    def __init__(self, graph: Graph, gate: ChannelGate) -> None:
        self.signature: Signature = traced_signature(graph, gate.product)
        calls = [v for v in graph.visits if (v.name, v.call) == (gate.where, gate.where_call)]
        first, last = (calls[0].first, calls[0].last) if calls else (0, len(graph.nodes))
        alike = [i for i in range(first, last) if _is_product_in(graph, i, gate.where)]
        alike = [i for i in alike if traced_signature(graph, i) == self.signature]
        self.position = alike.index(gate.product)
        self.of_its_kind = len(alike)
        self.factor = graph.nodes[gate.product].inputs[-2:].index(gate.gate)


def _is_product_in(graph: Graph, index: int, where: str) -> bool:
    node = graph.nodes[index]
    return node.kind != "layer" and node.where == where and node.name in ("mul", "addcmul") and len(node.inputs) > 1
