"""What there is to merge in a traced model: static constants, and affine maps of channels such as BatchNorms.

A source is a place in every run where a feature map is scaled and shifted per channel by known numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stripefold.folding.static_constants import StaticConstant, static_constants
from stripefold.graph.absorption import Refusal
from stripefold.graph.paths_not_taken import DID_NOT_RUN
from stripefold.graph.trace import Trace
from stripefold.layers.absorb import exact_view
from stripefold.layers.accepts import Acceptance, is_affine_map
from stripefold.layers.rule import given_at_most, rule_for
from stripefold.modules.float64_weights import Float64Weights
from stripefold.modules.foldable import Foldable
from stripefold.modules.writable import why_not_writable

ScaleAndShift = tuple[Tensor | None, Tensor | None]
"""The scale and the shift, (C,) or one number each, float64."""
_NEUTRAL = {"scale": 1.0, "addition": 0.0}


@dataclass(frozen=True)
class Occurrence:
    """A source in one run.

    Attributes:
        run: which run.
        moved: the node that is scaled or shifted.
        result: what comes of it.
        axes: where the channels may lie, from 0; the first that works is taken.
    """

    run: int
    moved: int
    result: int
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Source(ABC):
    """Something that may be merged away.

    Attributes:
        name: its row in the report.
        kind: the same.
        occurrences: where it stands, in every run in which it does.
        may_go_downstream: into what follows; else only into what stands in front.
        hindrance: why it stays wherever it stands, or None.
    """

    name: str
    kind: str
    occurrences: tuple[Occurrence, ...]
    may_go_downstream: bool
    hindrance: Refusal | None

    @abstractmethod
    def change(self, weights: Float64Weights) -> ScaleAndShift | str:
        """What it does to every channel, as exactly as it is known; or why it cannot be merged."""

    @abstractmethod
    def leftover(self) -> nn.Module | None:
        """The module that takes its place, or None where its place is no module."""


@dataclass(frozen=True)
class ConstantSource(Source):
    """A learned scale, or a learned addition, of one parameter.

    Attributes:
        constant: how it was found.
        holder: the module that has the parameter.
        module: where the product or the sum happens.
    """

    constant: StaticConstant
    holder: nn.Module
    module: nn.Module

    @property
    def key(self) -> str:
        """The parameter's attribute."""
        return self.constant.path.rpartition(".")[2]

    @property
    def neutral(self) -> float:
        """The number that makes it do nothing."""
        return _NEUTRAL[self.constant.kind]

    def is_trivial(self, weights: Float64Weights) -> bool:
        """Whether it does nothing."""
        value = weights.read(self.holder, self.key)
        return value is not None and bool((value == self.neutral).all()) and self.hindrance is None

    def change(self, weights: Float64Weights) -> ScaleAndShift | str:
        """See ``Source``."""
        value = weights.read(self.holder, self.key)
        assert value is not None  # the trace has found it
        reason = why_not_writable(getattr(self.holder, self.key))
        if not bool(value.isfinite().all()):
            return "it is not finite"
        if reason is not None:
            return f"it {reason}"
        value = value.flatten() * self.constant.sign
        return (value, None) if self.constant.kind == "scale" else (None, value)

    def leftover(self) -> nn.Module | None:
        """See ``Source``."""
        return nn.Identity().train(self.module.training) if self.constant.whole else None


@dataclass(frozen=True)
class NormSource(Source):
    """A layer that is an affine map of single channels: a BatchNorm in eval mode.

    Attributes:
        layer: the layer.
    """

    layer: nn.Module

    def change(self, weights: Float64Weights) -> ScaleAndShift | str:
        """See ``Source``."""
        rule = rule_for(self.layer)
        numbers = None if rule is None else rule.affine_map(exact_view(weights, self.layer))
        if numbers is None or isinstance(numbers, str):
            return numbers or "it is no affine map of single channels"
        if not all(bool(tensor.isfinite().all()) for tensor in numbers):
            return "its statistics or its affine part are not finite"
        return numbers

    def leftover(self) -> nn.Module | None:
        """See ``Source``."""
        rule = rule_for(self.layer)
        return (nn.Identity() if rule is None else rule.leftover(self.layer)).train(self.layer.training)


def constant_sources(model: nn.Module, trace: Trace) -> list[ConstantSource]:
    """The same constants of all runs together, in the order of the first run."""
    modules = dict(model.named_modules())
    grouped: dict[tuple[str, str, int], list[tuple[Occurrence, StaticConstant]]] = {}
    for run, graph in enumerate(trace.graphs):
        times: Counter[tuple[str, str]] = Counter()
        for constant in static_constants(graph, model):
            key = constant.path, constant.kind
            last = len(graph.nodes[constant.result].shape) - 1
            axes = (constant.axis,) if constant.axis is not None else tuple(dict.fromkeys((min(1, last), last)))
            occurrence = Occurrence(run, constant.moved, constant.result, axes)
            grouped.setdefault((*key, times[key]), []).append((occurrence, constant))
            times[key] += 1
    return [_constant(found, modules) for found in grouped.values()]


def _constant(found: list[tuple[Occurrence, StaticConstant]], modules: dict[str, nn.Module]) -> ConstantSource:
    first = found[0][1]
    path, _, key = first.path.rpartition(".")
    holder, tensor = modules[path], getattr(modules[path], key)
    why = next((each.hindrance for _, each in found if each.hindrance is not None), None)
    if tensor.is_complex():  # which makes the map complex as well, even where it is ones
        why = f"it is complex ({tensor.dtype}), and only real numbers are folded"
    kind = type(modules[first.module]).__name__ if first.whole else f"{first.kind} of {type(holder).__name__}"
    return ConstantSource(
        name=first.module if first.whole else first.path,
        kind=kind,
        occurrences=tuple(occurrence for occurrence, _ in found),
        # A parameter that would stay as ones is not worth the surprise of other layers changing behind it: the gain of
        # a normalisation that has no rule is such a one.
        may_go_downstream=first.whole,
        hindrance=None if why is None else Refusal(why),
        constant=first,
        holder=holder,
        module=modules[first.module],
    )


def norm_sources(model: nn.Module, trace: Trace, accept: Acceptance) -> list[NormSource]:
    """Every affine map of channels outside of sites that stay, in the order of the modules."""
    return [_norm(name, module, trace, accept) for name, module in outside_sites(model) if is_affine_map(module)]


def outside_sites(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules; a site that stays (dynamic attention) is one step, without the layer inside it."""
    inside = tuple(f"{name}." if name else "" for name, each in model.named_modules() if isinstance(each, Foldable))
    return ((name, module) for name, module in model.named_modules() if not name.startswith(inside or ("\0",)))


def _norm(name: str, module: nn.Module, trace: Trace, accept: Acceptance) -> NormSource:
    rule = rule_for(module)
    assert rule is not None  # is_affine_map
    found: list[Occurrence] = []
    why = accept.why_no_source(name)
    for run, graph in enumerate(trace.graphs):
        results = graph.results(name)
        if results:
            why = why or graph.why_not_one_plain_call(name, given_at_most(rule), taking=True, giving=True)
            only = graph.only_result(name)
            result = results[0] if only is None else only
            taken = [i for i in graph.nodes[result].inputs if graph.nodes[i].role != "constant"]
            if taken:
                axis = rule.axis % max(1, len(graph.nodes[result].shape))
                found.append(Occurrence(run, taken[0], result, (axis,)))
    missing = Refusal(f"it {DID_NOT_RUN}", unseen=True) if not found else None
    kept = rule.leftover(module)
    return NormSource(
        name=name,
        kind=type(module).__name__,
        occurrences=tuple(found),
        may_go_downstream=isinstance(kept, nn.Identity),
        hindrance=missing if why is None else Refusal(why),
        layer=module,
    )


def filled(tensor: Tensor, number: float) -> Tensor:
    """A float64 tensor of a tensor's shape that holds one number."""
    return torch.full_like(tensor, number, dtype=torch.float64)
