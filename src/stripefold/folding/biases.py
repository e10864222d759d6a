"""Places the bias that folding creates: a branch block's, or that of a gate that adds.

Behind it there is usually a BatchNorm: ``B(K x + b)`` is ``B(K x)`` with its running mean less by b, in eval mode, and
in training mode the bias makes no difference. So it is moved with the flow like any other shift, into layers that
take it without a new key; where there are none, the bias is a new key, and is announced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from stripefold.errors import TraceError
from stripefold.folding.static_constants import is_step
from stripefold.graph.absorption import Absorption, Accepts, FoldTarget, Refusal, Side
from stripefold.graph.graph import Graph
from stripefold.graph.operation_table import Change
from stripefold.graph.propagate import Flow
from stripefold.graph.several_runs import in_all_runs
from stripefold.graph.trace import Trace, trace
from stripefold.layers.absorb import absorb
from stripefold.layers.accepts import Acceptance
from stripefold.layers.rule import Rule, given_at_most, rule_for
from stripefold.modules.example import Example, infer_example
from stripefold.modules.float64_weights import Float64Weights
from stripefold.modules.foldable import Foldable, FoldNote


@dataclass(frozen=True, kw_only=True)
class BiasTarget:
    """Where one bias goes.

    Attributes:
        layer: path of the folded layer.
        key: the attribute that is its bias.
        parts: the layers that take it, by their paths in the folded model; none: it stays and is a new key.
        why: why there are none.
        unseen: because of a module that did not run on the examples.
        into: where they take it, in words.
    """

    layer: str
    key: str
    parts: tuple[Absorption, ...] = ()
    why: str = ""
    unseen: bool = False
    into: str = ""

    def __str__(self) -> str:
        if self.parts:
            return f"its bias into {self.into}"
        return f"new key {self.new_key!r}: {self.why}"

    @property
    def new_key(self) -> str:
        """The bias's own path."""
        return f"{self.layer}.{self.key}" if self.layer else self.key


def plan_biases(
    model: nn.Module, found: Mapping[str, Foldable], notes: Sequence[FoldNote], example: Example | None, *, fuse: bool
) -> tuple[dict[str, BiasTarget], tuple[str, ...]]:
    """Find a place for the bias of every module of ours that gains one; nothing is changed.

    Args:
        model: before folding.
        found: dotted path -> what folds.
        notes: of ``check_fold``; what they say stays stands between a layer and what follows it.
        example: input for the trace; inferred where the model declares one.
        fuse: whatever stands behind is merged anyway, so that every bias stays where folding makes it.

    Returns:
        The places by the modules' paths, and what did not run on the example.

    Raises:
        TraceError: the model does not run on the example given.
    """
    gaining = {name: key for name, module in found.items() if (key := module.gained_key) is not None}
    if not gaining:
        return {}, ()
    recorded = None if fuse else _trace(model, example)
    staying = {note.name for note in notes if not note.folded}
    accept = _WithoutNewKey(model, staying)
    targets: dict[str, BiasTarget] = {}
    for name, key in gaining.items():
        outer = outermost(name, found)
        dynamic = next((site for site in (name, outer) if site in staying), None)
        if dynamic is not None:  # the site of the dynamic attention stays, and the layer inside it
            layer = (f"{name}.base" if name else "base") if name == outer else name
            targets[name] = BiasTarget(
                layer=layer, key=key, why=f"the dynamic attention on {dynamic!r} stands behind it"
            )
        elif recorded is None:
            targets[name] = BiasTarget(
                layer=outer, key=key, why="without an example= no trace shows which BatchNorm follows"
            )
        else:
            joint = _joint(recorded, accept, name if name in recorded.called else outer)
            targets[name] = _target(outer, key, joint, accept)
    return targets, () if recorded is None else recorded.unseen


def _target(layer: str, key: str, found: FoldTarget | Refusal, accept: _WithoutNewKey) -> BiasTarget:
    if isinstance(found, Refusal):
        why = f"nothing behind it takes it ({found.why})"
        return BiasTarget(layer=layer, key=key, why=why, unseen=found.unseen)
    placed = tuple(accept.in_folded(part) for part in found.parts)
    into = (f"the {accept.taking(part)} of {place.layer}" for part, place in zip(found.parts, placed, strict=True))
    return BiasTarget(layer=layer, key=key, parts=placed, into=", ".join(into))


def place_biases_(plain: nn.Module, targets: Mapping[str, BiasTarget], weights: Float64Weights) -> tuple[str, ...]:
    """Move the biases of a folded model, not written yet, to their places; returns the keys that are new."""
    new: list[str] = []
    for target in targets.values():
        layer, moved = plain.get_submodule(target.layer), weights.fork()
        bias = weights.read(layer, target.key)
        assert bias is not None  # that is what gained_key says
        moved.forget(layer, target.key)
        for part in target.parts:
            absorb(moved, plain.get_submodule(part.layer), part, bias)
        if target.parts and moved.misfit(since=weights) is None:  # else too large for the statistics' dtype
            weights.adopt(moved)
        else:
            new.append(target.new_key)
    return tuple(new)


class _WithoutNewKey:
    """An ``Accept`` for shifts of the input that keep the model's keys, through sites around the layers."""

    def __init__(self, model: nn.Module, staying: Collection[str]) -> None:
        self._modules = dict(model.named_modules())
        self._acceptance, self._staying = Acceptance(model), staying

    def __call__(self, name: str, side: Side, change: Change) -> Accepts | str:
        layer, path = self._inner(name)
        rule = rule_for(layer)
        if path != name and (rule is None or not rule.norm):  # gates of positions stand in front of it
            return "it carries gates of its own"
        for key in (rule and rule.input_shift) or ():
            if getattr(layer, key, None) is None:
                return f"{type(layer).__name__} keeps no {key.replace('_', ' ')}"
        return self._acceptance(path, side, change)

    def rule(self, name: str) -> Rule | None:
        """The rule of what stands at a path."""
        return rule_for(self._modules[name])

    def taking(self, part: Absorption) -> str:
        """Which tensor of a layer takes its part, in words."""
        rule = rule_for(self._inner(part.layer)[0])
        return ", ".join((rule and rule.input_shift) or ()).replace("_", " ")

    def in_folded(self, part: Absorption) -> Absorption:
        """The part by its path in the folded model."""
        path = self._inner(part.layer)[1] if part.layer in self._staying else part.layer
        return Absorption(layer=path, side=part.side, index=part.index, change=part.change, factor=part.factor)

    def _inner(self, name: str) -> tuple[nn.Module, str]:
        holder = self._modules[name]
        base = holder._modules.get("base") if isinstance(holder, Foldable) else None
        return (holder, name) if base is None else (base, f"{name}.base" if name else "base")


def _joint(recorded: Trace, accept: _WithoutNewKey, name: str) -> FoldTarget | Refusal:
    """What takes a shift of a layer's output, the same in every run; or why nothing does."""
    return in_all_runs(recorded.graphs, [_target_in(graph, accept, name) for graph in recorded.graphs])


def _target_in(graph: Graph, accept: _WithoutNewKey, name: str) -> FoldTarget | Refusal | None:
    if name not in graph.calls_of:
        return None
    rule, result = accept.rule(name), graph.only_result(name)
    most = None if rule is None else given_at_most(rule)
    reason = graph.why_not_one_plain_call(name, most, giving=True)
    if reason is not None or rule is None or result is None:
        return Refusal(reason or "it is no layer with a rule")
    flow = Flow(graph=graph, accept=accept, dead=graph.unused_indices)
    return flow.forward("shift", result, rule.axis)


def outermost(name: str, found: Mapping[str, Foldable]) -> str:
    """The path of the outermost module of ours around (or at) a path."""
    return next(path for path in found if not path or name == path or name.startswith(f"{path}."))


def _trace(model: nn.Module, example: Example | None) -> Trace | None:
    inferred = infer_example(model) if example is None else example
    if inferred is None:
        return None
    try:
        return trace(model, inferred, is_layer=is_step)
    except TraceError:
        if example is not None:
            raise
        return None
