"""The plan of a fused fold: which sources go where, what stays and why. Made before anything is changed.

Sources are taken one by one: propagated along every run, accepted by the layers at the ends, formed in float64 and
looked at for overflow. One that fails is left out with its reason. What is merged passes others on from then on: a
scale behind an addition, a norm behind a norm. Constants first, then norms, backward before forward, until nothing
moves any more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from stripefold.folding.sources import (
    ConstantSource,
    NormSource,
    ScaleAndShift,
    Source,
    constant_sources,
    filled,
    norm_sources,
)
from stripefold.graph.absorption import Accepts, FoldTarget, Refusal, Side
from stripefold.graph.operation_table import Change as ChangeKind
from stripefold.graph.propagate import Flow
from stripefold.graph.several_runs import in_all_runs
from stripefold.graph.trace import Trace
from stripefold.layers.absorb import absorb
from stripefold.layers.accepts import Acceptance
from stripefold.layers.removable import removable_parameters
from stripefold.modules.float64_weights import Float64Weights
from stripefold.modules.foldable import FoldNote

_BACKWARD: tuple[ChangeKind, ...] = ("scale", "shift")
"""s (.) x + t: the scale is inside. What goes forward starts with what was done last."""
_Way = Literal["backward", "forward"]


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
    """One plan in the making.

    Whatever is merged changes what later sources meet: the numbers, what is passed on unchanged (``_identity``, which
    the flows read), and which norms have an activation left that stays (``_activations``).
    """

    def __init__(self, model: nn.Module, trace: Trace, weights: Float64Weights) -> None:
        self._model, self._trace = model, trace
        self._modules = dict(model.named_modules())
        self._acceptance = Acceptance(model)
        self._activations: set[str] = set()
        self._identity: list[dict[int, int]] = [{} for _ in trace.graphs]
        self._flows = [
            Flow(graph=graph, accept=self._accept, dead=graph.unused_indices, identity_nodes=identity)
            for graph, identity in zip(trace.graphs, self._identity, strict=True)
        ]
        self._plan = MergePlan(weights.fork())
        self._emptied: list[ConstantSource] = []
        self._moved = False

    def run(self, kept: Collection[str]) -> MergePlan:
        """Constants, then norms, until nothing moves any more."""
        constants = [source for source in constant_sources(self._model, self._trace) if source.name not in kept]
        self._merge_all(constants, ())
        norms = norm_sources(self._model, self._trace, self._acceptance)
        self._merge_all(constants, [source for source in norms if source.name not in kept])
        self._drop_constants()
        return self._plan

    def _merge_all(self, constants: Sequence[ConstantSource], norms: Sequence[NormSource]) -> None:
        self._moved = True
        while self._moved:
            self._moved = False
            for constant in constants:
                if not self._is_merged(constant):
                    self._merge_constant(constant)
            refused: list[tuple[NormSource, Refusal]] = []
            for norm in norms:
                refusal = None if self._is_merged(norm) else self._merge(norm, "backward")
                if refusal is not None:
                    refused.append((norm, refusal))
            for norm, refusal in refused:
                self._merge_forward(norm, refusal)

    def _is_merged(self, source: Source) -> bool:
        merged = all(each.result in self._identity[each.run] for each in source.occurrences)
        return (merged and bool(source.occurrences)) or source.name in self._activations

    def _accept(self, name: str, side: Side, change: ChangeKind) -> Accepts | str:
        """See ``graph.absorption.Accept``."""
        if name in self._activations:
            return "its affine part is merged already, and only its activation is left"
        return self._acceptance(name, side, change)

    # One source.

    def _merge_constant(self, constant: ConstantSource) -> None:
        if constant.is_trivial(self._plan.weights):
            self._pass_on(constant)
            self._emptied.append(constant)
            if constant.constant.whole:
                nothing = "it was ones" if constant.constant.kind == "scale" else "it was zeros"
                self._note(constant, nothing, folded=True)
            return
        refusal = self._merge(constant, "backward")
        if refusal is not None:
            self._merge_forward(constant, refusal)

    def _merge_forward(self, source: Source, backward: Refusal) -> None:
        """Merge what does not go backward into what follows, or note why neither is possible."""
        if source.hindrance is None and source.may_go_downstream:
            forward = self._merge(source, "forward")
            if forward is None:
                return
        else:
            carried = isinstance(source, NormSource) and source.hindrance is None
            forward = Refusal(_CARRIED) if carried else backward
        why = backward.why if forward.why == backward.why else f"{backward.why}; behind it: {forward.why}"
        self._note(source, why, folded=False, unseen=backward.unseen or forward.unseen)

    def _merge(self, source: Source, way: _Way) -> Refusal | None:
        """Merge a source one way and return None; or return why it does not go."""
        if source.hindrance is not None:
            return source.hindrance
        change = source.change(self._plan.weights)
        if isinstance(change, str):
            return Refusal(change)
        refusals = []
        for axis in range(len(source.occurrences[0].axes)):
            targets = self._targets(source, change, axis, way)
            refusal = targets if isinstance(targets, Refusal) else self._write(source, change, axis, targets)
            if isinstance(targets, list) and refusal is None:
                self._keep(source, _listed(targets), way)
                return None
            refusals.append(refusal)
        return refusals[0]

    def _targets(self, source: Source, change: ScaleAndShift, axis: int, way: _Way) -> list[FoldTarget] | Refusal:
        """Where the parts of a change go, in the order of being written; or why they do not."""
        kinds = [kind for kind, vector in zip(_BACKWARD, change, strict=True) if vector is not None]
        targets: list[FoldTarget] = []
        for kind in kinds if way == "backward" else reversed(kinds):
            found: list[FoldTarget | Refusal | None] = [None] * len(self._flows)
            for each in source.occurrences:
                flow, dim = self._flows[each.run], each.axes[min(axis, len(each.axes) - 1)]
                if way == "backward":
                    found[each.run] = flow.backward(kind, each.moved, dim, user=each.result)
                else:
                    found[each.run] = flow.forward(kind, each.result, dim)
            joint = in_all_runs(self._trace.graphs, found)
            if isinstance(joint, Refusal):
                return joint
            targets.append(joint)
        return targets

    def _write(self, source: Source, change: ScaleAndShift, axis: int, targets: Sequence[FoldTarget]) -> Refusal | None:
        """Write the source into its layers, in the plan's numbers; or say why they do not hold it."""
        first = source.occurrences[0]
        channels = self._trace.graphs[first.run].nodes[first.result].shape[first.axes[axis]]
        vectors = dict(zip(_BACKWARD, change, strict=True))
        trial = self._plan.weights.fork()
        for target in targets:
            for part in target.parts:
                vector = vectors[part.change]
                assert isinstance(vector, Tensor)
                if target.nonnegative and part.change == "scale" and bool((vector < 0).any()):
                    return Refusal(_NEGATIVE)
                absorb(trial, self._modules[part.layer], part, vector.expand(channels))
        misfit = trial.misfit(since=self._plan.weights)
        if misfit is not None:
            return Refusal(f"the merged {misfit}")
        self._plan.weights = trial
        return None

    def _keep(self, source: Source, into: str, way: _Way) -> None:
        self._moved = True
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
            self._activations.add(source.name)
        self._note(source, f"merged into {into}{' behind it' if way == 'forward' else ''}", folded=True)

    def _note(self, source: Source, why: str, *, folded: bool, unseen: bool = False) -> None:
        self._plan.notes[source.name] = FoldNote(
            name=source.name, kind=source.kind, folded=folded, why=why, unseen=unseen
        )

    # What is merged does nothing any more.

    def _pass_on(self, source: Source) -> None:
        self._moved = True
        for each in source.occurrences:
            self._identity[each.run][each.result] = each.moved

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


_NEGATIVE = "it has negative entries, and a rectifier or a maximum lies between it and the layer"
_CARRIED = "the activation it carries stands in front of what follows"


def _listed(targets: Sequence[FoldTarget]) -> str:
    """The layers of some targets, each once."""
    return ", ".join(dict.fromkeys(name for target in targets for name in target.layers))
