"""Record the gates of a model while it runs: hooks where a module returns the gate, a dispatch mode where none does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from stripefold.attention.base import ChannelAttention
from stripefold.modules.tensors import tensors_in
from stripefold.stripe.discover import ChannelGate, Discovery
from stripefold.stripe.gate_vectors import Expected, compact_shape, signature, vectors
from stripefold.stripe.product_mode import watching_products


@dataclass(frozen=True)
class _Kept:
    """A tensor of the batch that runs; ``version`` tells whether it was overwritten since, None for a copy."""

    tensor: Tensor
    version: int | None
    width: int
    batched: bool = True


class Recording:
    """The scale vectors of the batch that runs.

    Nothing is computed while the model runs: its own tensors are kept, by reference, until the batch is over. One that
    the model overwrites meanwhile is copied from then on, see ``overwritten``.

    Args:
        discovery: The gates.
    """

    def __init__(self, discovery: Discovery) -> None:
        self.gates = discovery.gates
        self._discovery = discovery
        self._scales: dict[int, _Kept] = {}
        self._descriptors: dict[int, _Kept] = {}
        self._products: Counter[int] = Counter()
        self._calls: Counter[str] = Counter()
        self._copied = False
        self._expected = {
            i: Expected(discovery.graph_of(gate), gate) for i, gate in enumerate(self.gates) if gate.source is None
        }

    def start(self) -> None:
        """A new batch: forget the last one."""
        for kept in (self._scales, self._descriptors, self._products, self._calls):
            kept.clear()

    def overwritten(self) -> bool:
        """Whether the model wrote into what was kept: then the batch has to run again, with copies from now on."""
        kept = (*self._scales.values(), *self._descriptors.values())
        found = any(one.version is not None and one.tensor._version != one.version for one in kept)
        self._copied = self._copied or found
        return found

    def scales(self) -> dict[int, Tensor]:
        """Gate (its position in the discovery) -> (rows, C), in the dtype in which the model computed it."""
        return {i: self._rows(i, kept) for i, kept in self._scales.items()}

    def descriptors(self) -> dict[int, Tensor]:
        """Gate -> (rows, D), where a module is called with its descriptor or says what it is."""
        return {i: self._rows(i, kept) for i, kept in self._descriptors.items()}

    def _rows(self, index: int, kept: _Kept) -> Tensor:
        return vectors(kept.tensor, kept.width, self.gates[index].name, batched=kept.batched)

    def differing(self) -> list[int]:
        """Gates whose product could not be told apart: another number of its kind ran than in the trace.

        So it is with a model that loops over the samples of a batch: the trace saw two of them.
        """
        products = [i for i, e in self._expected.items() if i in self._scales and self._products[i] != e.of_its_kind]
        return products + [i for i in self._scales if not self._ran_as_often(self.gates[i])]

    def _ran_as_often(self, gate: ChannelGate) -> bool:
        """Whether the module that is watched for a gate was called as often as in the trace."""
        if gate.source is not None:
            return self._calls[f"source {gate.source}"] == gate.source_calls
        return self._calls[f"where {gate.where}"] == gate.where_calls

    def _keep(self, tensor: Tensor, width: int, *, batched: bool = True) -> _Kept:
        if self._copied or tensor.is_inference():  # which counts no versions
            return _Kept(tensor.clone(), None, width, batched)
        return _Kept(tensor, tensor._version, width, batched)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Hooks and modes are on the model inside, and gone afterwards, whatever was raised."""
        modules = dict(model.named_modules())
        with ExitStack() as stack:
            for source, numbered in self._grouped(lambda i, gate: gate.source).items():
                handle = modules[source].register_forward_hook(self._source_hook(source, numbered))
                stack.callback(handle.remove)
            for entry, numbered in self._grouped(lambda i, gate: gate.entry).items():
                handle = modules[entry].register_forward_pre_hook(self._entry_hook(entry, numbered), with_kwargs=True)
                stack.callback(handle.remove)
            for i, gate in enumerate(self.gates):
                if gate.entry is None and isinstance(modules[gate.where], ChannelAttention):
                    handle = modules[gate.where].register_forward_pre_hook(self._squeeze_hook(i))
                    stack.callback(handle.remove)
            for where, numbered in self._grouped(lambda i, gate: gate.where if i in self._expected else None).items():
                stack.enter_context(self._product_watch(where, modules[where], numbered))
            yield

    def _grouped(self, module_of: Callable[[int, ChannelGate], str | None]) -> dict[str, dict[int, ChannelGate]]:
        """The gates by the module that is watched for them, numbered; one pass, since there may be thousands."""
        found: dict[str, dict[int, ChannelGate]] = {}
        for i, gate in enumerate(self.gates):
            module = module_of(i, gate)
            if module is not None:
                found.setdefault(module, {})[i] = gate
        return found

    def _next_call(self, label: str) -> int:
        self._calls[label] += 1
        return self._calls[label] - 1

    def _source_hook(self, source: str, numbered: Mapping[int, ChannelGate]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            call = self._next_call(f"source {source}")
            for i, gate in numbered.items():
                if gate.source_call == call:
                    self._scales[i] = self._keep(next(tensors_in(output)), gate.channels, batched=gate.rows_first)

        return hook

    def _entry_hook(self, entry: str, numbered: Mapping[int, ChannelGate]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            call = self._next_call(f"entry {entry}")
            for i, gate in numbered.items():
                value = next(tensors_in((args, kwargs)), None)
                if gate.entry_call == call and value is not None:
                    node = self._discovery.graph_of(gate).nodes[gate.descriptor]
                    self._descriptors[i] = self._keep(value, node.unbroadcast_numel // node.shape[0])

        return hook

    def _squeeze_hook(self, index: int) -> Callable[..., None]:
        """An attention of ours says itself what its descriptor is, though no module of its own is called with it."""
        gate = self.gates[index]

        def hook(module: nn.Module, args: Any) -> None:
            if self._next_call(f"squeeze {index}") == gate.where_call and isinstance(module, ChannelAttention):
                descriptor = module.squeeze(args[0]).flatten(1)
                self._descriptors[index] = self._keep(descriptor, descriptor.shape[1])

        return hook

    def _product_watch(self, where: str, module: nn.Module, numbered: Mapping[int, ChannelGate]) -> Any:
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
                    if self._products[i] == expected.position:
                        factor = (first, second)[expected.factor]
                        self._scales[i] = self._keep(factor, gate.channels, batched=gate.rows_first)
                    self._products[i] += 1

        return watching_products(module, enter, see)
