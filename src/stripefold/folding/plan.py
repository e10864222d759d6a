"""The plan of a fused fold: which sources go where, what stays and why. Made before anything is changed.

Sources are taken one by one: propagated along every run, accepted by the layers at the ends, formed in float64 and
looked at for overflow. One that fails is left out with its reason. What is merged passes others on from then on: a
scale behind an addition, a norm behind a norm. Constants first, then norms, backward before forward, until nothing
moves any more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from stripefold.folding.sources import (
    ConstantSource,
    NormSource,
    ScaleAndShift,
    Source,
    Standing,
    constant_sources,
    filled,
    norm_sources,
)
from stripefold.graph.absorption import FoldTarget, Refusal
from stripefold.graph.operation_table import Change as ChangeKind
from stripefold.graph.propagate import Flow, unused_places
from stripefold.graph.several_runs import in_all_runs
from stripefold.graph.trace import Trace
from stripefold.layers.absorb import absorb
from stripefold.layers.accepts import Acceptance
from stripefold.layers.removable import removable_parameters
from stripefold.modules.float64_weights import Float64Weights
from stripefold.modules.foldable import FoldNote

_BACKWARD: tuple[ChangeKind, ...] = ("scale", "shift")
"""s (.) x + t: the scale is inside. What goes forward starts with what was done last."""


@dataclass
class MergePlan:
    """What merging would do to a model.

    Attributes:
        weights: the merged numbers.
        notes: source -> its row.
        replacements: module -> what takes its place.
        dropped: parameters that become None.
    """

    weights: Float64Weights
    notes: dict[str, FoldNote] = field(default_factory=dict)
    replacements: dict[nn.Module, nn.Module] = field(default_factory=dict)
    dropped: list[tuple[nn.Module, str]] = field(default_factory=list)


def plan_merges(model: nn.Module, trace: Trace, weights: Float64Weights, kept: Collection[str] = ()) -> MergePlan:
    """Plan what ``fuse=True`` merges beside blocks; the model is only read.

    Args:
        model: a plain (folded) model.
        trace: of it, with ``static_constants.is_step``.
        weights: what earlier steps have merged.
        kept: sources that have to stay.
    """
    return _Planner(model, trace, weights).run(kept)


class _Planner:
    def __init__(self, model: nn.Module, trace: Trace, weights: Float64Weights) -> None:
        self._model, self._trace = model, trace
        self._modules = dict(model.named_modules())
        self._acceptance = Acceptance(model)
        self._standing = Standing(self._acceptance)
        self._flows = [
            Flow(graph=graph, accept=self._standing, dead=unused_places(graph), identity_nodes={})
            for graph in trace.graphs
        ]
        self._plan = MergePlan(weights.fork())
        self._emptied: list[ConstantSource] = []

    def run(self, kept: Collection[str]) -> MergePlan:
        """Constants, then norms, until nothing moves any more."""
        constants = [source for source in constant_sources(self._model, self._trace) if source.name not in kept]
        self._settle(constants, ())
        norms: list[Source] = list(norm_sources(self._model, self._trace, self._acceptance))
        self._settle(constants, [source for source in norms if source.name not in kept])
        self._drop_constants()
        return self._plan

    def _settle(self, constants: Sequence[ConstantSource], norms: Sequence[Source]) -> None:
        while True:
            before = len(self._plan.notes), sum(note.folded for note in self._plan.notes.values())
            for constant in constants:
                if not self._is_merged(constant):
                    self._take_constant(constant)
            behind = {norm.name: self._try(norm, "backward") for norm in norms if not self._is_merged(norm)}
            for norm in norms:
                if behind.get(norm.name) is not None:
                    self._take_forward(norm, str(behind[norm.name]))
            if before == (len(self._plan.notes), sum(note.folded for note in self._plan.notes.values())):
                return

    def _is_merged(self, source: Source) -> bool:
        merged = all(each.result in self._flows[each.run].identity_nodes for each in source.occurrences)
        return (merged and bool(source.occurrences)) or source.name in self._standing.gone

    # One source.

    def _take_constant(self, constant: ConstantSource) -> None:
        if constant.is_trivial(self._plan.weights):
            self._pass_on(constant)
            self._emptied.append(constant)
            if constant.constant.whole:
                nothing = "it was ones" if constant.constant.kind == "scale" else "it was zeros"
                self._note(constant, nothing, folded=True)
            return
        why = self._try(constant, "backward")
        if why is not None:
            self._take_forward(constant, why)

    def _take_forward(self, source: Source, behind: str) -> None:
        """Try what could not go backward, for the reason given."""
        if source.hindrance is not None or not source.forward:
            carried = isinstance(source, NormSource) and source.hindrance is None
            self._note(source, f"{behind}; behind it: {_CARRIED}" if carried else behind, folded=False)
            return
        ahead = self._try(source, "forward")
        if ahead is not None:
            self._note(source, behind if ahead == behind else f"{behind}; behind it: {ahead}", folded=False)

    def _try(self, source: Source, way: str) -> str | None:
        """Merge a source one way, or say why not."""
        if source.hindrance is not None:
            return source.hindrance
        change = source.change(self._plan.weights)
        if isinstance(change, str):
            return change
        reasons = []
        for axis in range(len(source.occurrences[0].axes)):
            targets = self._targets(source, change, axis, way)
            weights = targets if isinstance(targets, str) else self._merged(source, change, axis, targets)
            if not isinstance(weights, str):
                self._plan.weights = weights
                self._keep(source, _listed(targets), way)
                return None
            reasons.append(weights)
        return reasons[0]

    def _targets(self, source: Source, change: ScaleAndShift, axis: int, way: str) -> list[FoldTarget] | str:
        """Where the parts of a change go, in the order of being written; or why they do not."""
        kinds = [kind for kind, vector in zip(_BACKWARD, change, strict=True) if vector is not None]
        targets: list[FoldTarget] = []
        for kind in kinds if way == "backward" else reversed(kinds):
            found: list[FoldTarget | Refusal | None] = [None] * len(self._flows)
            for each in source.occurrences:
                flow, dim = self._flows[each.run], each.axes[min(axis, len(each.axes) - 1)]
                backward = way == "backward"
                found[each.run] = (
                    flow.backward(kind, each.moved, dim, user=each.result)
                    if backward
                    else flow.forward(kind, each.result, dim)
                )
            joint = in_all_runs(self._trace.graphs, found)
            if isinstance(joint, Refusal):
                return joint.why
            targets.append(joint)
        return targets

    def _merged(
        self, source: Source, change: ScaleAndShift, axis: int, targets: Sequence[FoldTarget]
    ) -> Float64Weights | str:
        """The numbers with the source in its layers; or why they do not hold it."""
        first = source.occurrences[0]
        channels = self._trace.graphs[first.run].nodes[first.result].shape[first.axes[axis]]
        vectors = dict(zip(_BACKWARD, change, strict=True))
        trial = self._plan.weights.fork()
        for target in targets:
            for part in target.parts:
                vector = vectors[part.change]
                assert isinstance(vector, Tensor)
                if target.nonnegative and part.change == "scale" and bool((vector < 0).any()):
                    return "it has negative entries, and a rectifier or a maximum lies between it and the layer"
                absorb(trial, self._modules[part.layer], part, vector.expand(channels))
        misfit = trial.misfit(since=self._plan.weights)
        return trial if misfit is None else f"the merged {misfit}"

    def _keep(self, source: Source, into: str, way: str) -> None:
        if isinstance(source, ConstantSource):
            self._empty(source)
            self._note(source, f"folded into {into}", folded=True)
            return
        assert isinstance(source, NormSource)
        left = source.leftover()
        assert left is not None
        self._plan.replacements[source.layer] = left
        if isinstance(left, nn.Identity):
            self._pass_on(source)
        else:
            self._standing.gone.add(source.name)
        self._note(source, f"merged into {into}{' behind it' if way == 'forward' else ''}", folded=True)

    def _note(self, source: Source, why: str, *, folded: bool) -> None:
        self._plan.notes[source.name] = FoldNote(name=source.name, kind=source.kind, folded=folded, why=why)

    # What is merged does nothing any more.

    def _pass_on(self, source: Source) -> None:
        for each in source.occurrences:
            identity_nodes = self._flows[each.run].identity_nodes
            assert isinstance(identity_nodes, dict)
            identity_nodes[each.result] = each.moved

    def _empty(self, constant: ConstantSource) -> None:
        own = getattr(constant.holder, constant.key)
        self._plan.weights.set(constant.holder, {constant.key: filled(own, constant.neutral)})
        self._pass_on(constant)
        self._emptied.append(constant)

    def _drop_constants(self) -> None:
        """Take constants that do nothing out of the model where nothing would miss them."""
        gone: dict[nn.Module, set[str]] = {}
        for constant in self._emptied:
            left = constant.leftover()
            if left is not None:
                self._plan.replacements[constant.module] = left
            else:
                gone.setdefault(constant.holder, set()).add(constant.key)
        for holder, keys in gone.items():
            together = removable_parameters(holder)
            if together and all(key in keys or getattr(holder, key, None) is None for key in together):
                for key in together:
                    self._plan.weights.forget(holder, key)
                    self._plan.dropped.append((holder, key))


_CARRIED = "the activation it carries stands in front of what follows"


def _listed(targets: Sequence[FoldTarget] | str) -> str:
    """The layers of some targets, each once."""
    assert not isinstance(targets, str)
    return ", ".join(dict.fromkeys(name for target in targets for name in target.layers))
