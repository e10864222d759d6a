"""The trained ``excite`` of a gate as a module of its own: from the squeezed value to v, cut out along the trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from stripefold.attention.base import ChannelAttention
from stripefold.errors import BakeError
from stripefold.graph.graph import Graph
from stripefold.graph.module_calls import ModuleCall
from stripefold.graph.operation_names import BROADCASTS, RESHAPES
from stripefold.stripe.discover import ChannelGate

# What an attention's own forward may call between its layers.
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class ExciteStep:
    """One step from the descriptor to the gate: a module, a function by name, or a reshape.

    Attributes:
        kind: "module", "function" or "view".
        what: position of the module among the chain's ``parts``, the function's name, or the shape for one sample.
    """

    kind: str
    what: int | str | tuple[int, ...]


class ExciteChain(ChannelAttention):
    """v = excite(psi), with the trained modules of an attention that stripefold did not build.

    Normalisations inside keep their running statistics: there is no batch to take others from.

    Args:
        channels: C.
        parts: the modules on the way, in the order of their calls.
        steps: what happens to the descriptor.
        shape: of the descriptor for one sample, as the first step takes it.
    """

    name = "excite"
    squeezes = "the network's own"
    excites = "the network's own modules"
    dynamic = False

    def __init__(
        self, channels: int, parts: list[nn.Module], steps: tuple[ExciteStep, ...], shape: tuple[int, ...]
    ) -> None:
        super().__init__(channels)
        self.parts = nn.ModuleList(parts)
        self.steps = steps
        self.shape = tuple(shape)

    @property
    def descriptor_shape(self) -> tuple[int, ...]:
        """(D,): the squeezed value of one sample, flattened."""
        return (int(torch.Size(self.shape).numel()),)

    def train(self, mode: bool = True) -> ExciteChain:
        """Set the mode; normalisations over the batch stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.training = False
        return self

    def squeeze(self, x: Tensor) -> Tensor:
        """There is none.

        Raises:
            BakeError: always; the descriptor is psi.
        """
        raise BakeError("a gate that was made from a trained attention has no dynamic form: its descriptor is psi")

    def excite(self, descriptor: Tensor) -> Tensor:
        """(N, D) -> (N, C), in the dtype of ``descriptor``."""
        value = descriptor.reshape(-1, *self.shape)
        for step in self.steps:
            if step.kind == "module":
                value = _run(self.parts[step.what], value)  # type: ignore[index]
            elif step.kind == "function":
                value = _FUNCTIONS[str(step.what)](value)
            else:
                value = value.reshape(-1, *step.what)  # type: ignore[misc]
        return value.reshape(-1, self.channels)

    def excite_static(self, psi: Tensor) -> Tensor:
        """(D,) -> (C,)."""
        return self.excite(psi.unsqueeze(0)).squeeze(0)


def excite_of(model: nn.Module, graph: Graph, gate: ChannelGate) -> ChannelAttention | str:
    """A copy of what computes a gate from its descriptor: an attention of ours as it is, else the chain.

    Args:
        model: the model that was discovered; only read.
        graph: of the discovery's trace.
        gate: one of its gates.

    Returns:
        In evaluation mode; or why there is none, in words.
    """
    own = model.get_submodule(gate.where)
    if not isinstance(own, ChannelAttention):
        return excite_chain(model, graph, gate)
    if any(isinstance(module, _BatchNorm) for module in own.modules()):
        return f"the static form of {own.name!r} leaves out its normalisation over the batch"
    copied = copy.deepcopy(own)
    copied.eval()
    return copied


def excite_chain(model: nn.Module, graph: Graph, gate: ChannelGate) -> ExciteChain | str:
    """Copy the modules between a gate's descriptor and the gate out of a model.

    Args:
        model: the model that was discovered; only read.
        graph: of the discovery's trace.
        gate: one of its gates.

    Returns:
        The chain, in evaluation mode; or why there is none, in words.
    """
    if gate.descriptor < 0:
        return "its gate is not computed from one squeezed value"
    start = graph.nodes[gate.descriptor].shape
    walk = _ExciteWalk(graph, gate)
    reason = walk.go()
    if reason is not None:
        return reason
    parts = [copy.deepcopy(model.get_submodule(name)) for name in walk.names]
    chain = ExciteChain(gate.channels, parts, tuple(walk.steps), start[1:])
    chain.eval()
    return chain


class _ExciteWalk:
    """Follows the trace from the descriptor to the gate, one module or operation at a time."""

    def __init__(self, graph: Graph, gate: ChannelGate) -> None:
        self.graph, self.gate = graph, gate
        self.batch = graph.nodes[gate.descriptor].shape[0]
        self.names: list[str] = []
        self.steps: list[ExciteStep] = []

    def go(self) -> str | None:
        """Fill names and steps; returns what stands in the way, or None."""
        current = self.gate.descriptor
        while current != self.gate.gate:
            visit = self._module_after(current)
            if visit is not None:
                self.steps.append(ExciteStep("module", len(self.names)))
                self.names.append(visit.name)
                current = visit.outputs[0]
                continue
            users = [i for i in dict.fromkeys(self.graph.consumers[current]) if self._leads_on(i)]
            if len(users) != 1:
                return f"its gate takes the squeezed value in {len(users)} ways"
            reason = self._operation(users[0])
            if reason is not None:
                return reason
            current = users[0]
        return None

    def _leads_on(self, index: int) -> bool:
        return bool(self.graph.values_upstream[self.gate.gate] >> index & 1)

    def _module_after(self, current: int) -> ModuleCall | None:
        """The outermost module that makes something on the way from this value and nothing else."""
        found = [v for v in self.graph.module_calls if v.inputs == (current,) and len(v.outputs) == 1 and v.name]
        found = [v for v in found if v.outputs[0] != current and self._leads_on(v.outputs[0]) and self._closed(v)]
        return min(found, key=lambda v: (v.first, -v.last), default=None)

    def _closed(self, visit: ModuleCall) -> bool:
        """Whether what runs inside a module uses its input, constants and nothing else."""
        inside = range(visit.first, visit.last)
        sources = {i for index in inside for i in self.graph.nodes[index].inputs} - set(visit.inputs)
        return all(i in inside or self.graph.nodes[i].role == "constant" for i in sources)

    def _operation(self, index: int) -> str | None:
        node = self.graph.nodes[index]
        if node.name in BROADCASTS and node.unbroadcast_numel <= self.batch * self.gate.channels:
            return None  # made for the product: the scale is read before it
        if node.name in RESHAPES and node.shape[:1] == (self.batch,):
            self.steps.append(ExciteStep("view", node.shape[1:]))
        elif node.name in _FUNCTIONS and len(node.inputs) == 1:
            self.steps.append(ExciteStep("function", node.name))
        else:
            return (
                f"{node.name!r} in {node.where or 'the model itself'!r} stands between the squeezed value and the gate"
            )
        return None


def _run(module: nn.Module, value: Tensor) -> Tensor:
    """A module in the dtype of its input, as ``ChannelAttention`` asks for."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    cast = {k: t.to(value.dtype) for k, t in tensors.items() if t.is_floating_point() and t.dtype != value.dtype}
    result: Tensor = functional_call(module, cast, (value,)) if cast else module(value)
    return result
