"""One call of ``bake``: analyse, decide, bake a copy, compare, report."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stripefold.baking.batches import Batches
from stripefold.baking.constants import constants_of
from stripefold.baking.graph_modules import Probe, discover_probed_, insert_probes_
from stripefold.baking.judge import GateDecisions, GateJudge, energies
from stripefold.baking.metric import ACCURACY, Accuracy, Metric, OfFirst
from stripefold.baking.options import BakeConfig
from stripefold.baking.override_gates import can_hold
from stripefold.baking.recipe import Recipe
from stripefold.baking.report import BakeReport, Speed
from stripefold.baking.results import site_results
from stripefold.baking.sensitivity import priors_of
from stripefold.baking.settle_state import tensors_of_model
from stripefold.baking.sites import BakeSite, plan_bake
from stripefold.baking.speed import side_by_side
from stripefold.baking.weighted import weighted_constants, with_summands
from stripefold.baking.working_copy import check_copies, deep_copy, working_copy
from stripefold.distributed import broadcast_from_rank0
from stripefold.errors import BakeError
from stripefold.graph.absorption import Refusal
from stripefold.graph.paths_not_taken import DID_NOT_RUN, unseen_in_words
from stripefold.modules.all_or_nothing import AllOrNothing
from stripefold.modules.example import Example
from stripefold.modules.modules import first_parameter
from stripefold.modules.preserve_state import on_copies, preserve_state
from stripefold.stripe.batches import count_arguments
from stripefold.stripe.discover import ChannelGate, Discovery
from stripefold.stripe.observe import observe
from stripefold.stripe.report import StripeReport

T = TypeVar("T")


@dataclass
class Analysis:
    """What is known of a model before anything is decided.

    Attributes:
        discovery: its gates.
        stripes: what they give over the calibration data.
        constants: gate -> v (C,) of those that may be baked.
        left: gate -> why it may not.
        by_unseen: one of them may not because of a module that did not run on the example.
        priors: gate -> its prior.
        notes: for the user.
    """

    discovery: Discovery
    stripes: StripeReport
    constants: dict[str, Tensor]
    left: dict[str, str]
    priors: dict[str, float]
    notes: list[str]
    by_unseen: bool = False


class BakeJob:
    """Everything one call needs. The user's model is changed by ``apply_`` alone.

    Everything is looked for in a copy that reads the model's own parameters, and that is only run on copies of itself:
    a metric may look at the model, so that no hook may stand on that.

    Args:
        model: bare.
        data: calibration batches.
        example: for the trace, or None.
        options: of the call.
        in_place: whether ``apply_`` will be called.

    Raises:
        BakeError: data that cannot be read twice, or a model that cannot be copied.
    """

    def __init__(
        self, model: nn.Module, data: Any, example: Example | None, options: BakeConfig, *, in_place: bool = False
    ) -> None:
        self._users, self._options, self._in_place = model, options, in_place
        self._model = model = working_copy(model)
        if options.settle is not None:  # it gets weights of its own
            self._model = model = deep_copy(model)
        arguments = count_arguments(example)
        self._data = Batches(data, "data", model, arguments=arguments)
        self._validation = self._data
        if options.validation is not None:
            self._validation = Batches(options.validation, "validation", model, arguments=arguments)
        self._training = self._data
        asked = options.finetune or options.settle
        if asked is not None and asked.data is not None:
            name = "the data of finetune" if options.settle is None else "the data of settle"
            self._training = Batches(asked.data, name, model, arguments=arguments)
        self._given, self._group = example, options.process_group
        like = first_parameter(model)
        self._home = None if like is None or options.device is None else like.device
        self._recipe: Recipe | None = None
        self._norms: dict[str, list[Tensor]] = {}
        self._weights: dict[str, Tensor] = {}
        self._probes: tuple[Probe, ...] = ()

    def at_home(self, model: nn.Module) -> nn.Module:
        """The model where it was before the call."""
        return model if self._home is None else model.to(self._home)

    def baked(self) -> tuple[nn.Module, BakeReport]:
        """A copy that is baked and compared with the model, and the report."""
        example = self._agreed(self._data.example) if self._given is None else self._given
        check_copies(self._users, example)
        if self._home is not None:
            self._model.to(self._options.device)
        discovery, self._probes = discover_probed_(self._model, example)
        if self._options.settle is None:
            look, judge, verdict = on_copies(lambda copied: self._decided(copied, discovery, example), self._model)
        else:
            with preserve_state(self._model, own_parameters=True) as trained:
                look, judge, verdict = self._decided(trained, discovery, example)
        self._write_numbers_(self._model)
        descriptors = {s.name: s.descriptor_mean for s in look.stripes.layers if s.descriptor_mean is not None}
        self._recipe = Recipe(
            discovery=look.discovery, to=self._options.to, constants=verdict.constants, descriptors=descriptors
        )
        made, final = self._recipe.tried(self._model, self._probed_copy, example, in_place=self._in_place)
        report = self._report(look, verdict, final)
        made_report = self._measured(made, report, (judge, verdict))
        if look.by_unseen or any(site.unseen for site in final):
            _announce(look.discovery.trace.unseen)
        return made, made_report

    def _decided(
        self, model: nn.Module, discovery: Discovery, example: Example
    ) -> tuple[Analysis, GateJudge, GateDecisions]:
        """What is known and decided, from runs of a copy; the new statistics of its norms are kept."""
        look = self._look(model, discovery, example)
        judge = GateJudge(model, look.discovery, look.constants, self._metric(), self._options)
        descriptors = {s.name: s.descriptor_mean for s in look.stripes.layers if s.descriptor_mean is not None}
        verdict = judge.decide(look.priors, self._data, self._training, descriptors)
        norms = {name: model.get_submodule(name) for name in verdict.norms}
        self._norms = {name: [b.clone() for b in norm.buffers(recurse=False)] for name, norm in norms.items()}
        if verdict.trained:
            self._weights = {name: tensor.clone() for name, tensor in tensors_of_model(model).items()}
        return look, judge, verdict

    def _probed_copy(self) -> nn.Module:
        """A copy of the user's model, ready to be baked."""
        copied = deep_copy(self._users)
        if self._home is not None:
            copied.to(self._options.device)
        self._write_numbers_(copied)
        insert_probes_(copied, self._probes)
        return copied

    @torch.no_grad()
    def _write_numbers_(self, model: nn.Module) -> None:
        """Give norms the statistics that were estimated anew, and a model that has settled its weights."""
        theirs = tensors_of_model(model)
        for name, weight in self._weights.items():
            theirs[name].copy_(weight)
        for name, numbers in self._norms.items():
            for own, found in zip(model.get_submodule(name).buffers(recurse=False), numbers, strict=True):
                own.copy_(found)

    def apply_(self) -> None:
        """Bake the model itself, as its copy was; nothing that could fail is left."""
        assert self._recipe is not None  # baked() comes first
        change = AllOrNothing(self._users)
        with change, change:
            self._apply_(self._recipe)

    def _apply_(self, recipe: Recipe) -> None:
        self._write_numbers_(self._users)
        insert_probes_(self._users, self._probes)
        recipe.apply_(self._users)

    def _metric(self) -> Metric | None:
        options = self._options
        if options.metric is not None:
            return options.metric if self._group is None else OfFirst(options.metric, self._group)
        asked = options.max_drop is not None or options.validation is not None
        return Accuracy(self._validation, self._group) if asked or self._agreed(self._data.labelled) else None

    def _agreed(self, run: Callable[[], T]) -> T:
        """What the first process finds, on all of them: what may hang on a share must not decide differently."""
        return broadcast_from_rank0(run, self._group, BakeError)

    def _look(self, model: nn.Module, discovery: Discovery, example: Example) -> Analysis:
        if not discovery.gates:
            others = f" ({len(discovery.others)} other products depend on the image)" if discovery.others else ""
            raise BakeError(
                f"{type(model).__name__} has no channel attention that depends on the image{others}: there is nothing "
                "to bake"
            )
        where = self._options.where
        chosen = self._options.chosen(discovery.gates, lambda gate: where(gate.name, model.get_submodule(gate.where)))
        self._options.tell("observing the gates")
        stripes = observe(
            model, self._data.data, example=example, process_group=self._group,
            progress=lambda images: self._options.tell("observing", images),
        )  # fmt: skip
        kind, weighted = self._options.kind, None
        if kind in ("energy", "least-squares"):
            weighted = weighted_constants(model, discovery, self._data, self._group)
        constants, reasons = constants_of(model, discovery, stripes.layers, kind, weighted)
        discovery = with_summands(model, discovery, self._data, constants, self._group)
        chosen = [gate for gate in discovery.gates if gate.name in {one.name for one in chosen}]
        refused = self._left(discovery, chosen, stripes, reasons)
        left = {name: refusal.why for name, refusal in refused.items()}
        names = [gate.name for gate in discovery.gates if gate.name not in left]
        if not names:
            listed = "; ".join(f"{name or '(the model)'}: {why}" for name, why in list(left.items())[:3])
            raise BakeError(f"none of the {len(discovery.gates)} gates can be baked. {listed}")
        energy = self._agreed(lambda: energies(model, discovery.gates, self._data.first().inputs))
        notes = [f"{name}: {why}" for name, why in reasons.items() if name in names]
        notes += _unseen(dict.fromkeys((*discovery.trace.unseen, *stripes.uncalled)))
        may = {name: constants[name] for name in names}
        return Analysis(discovery, stripes, may, left, priors_of(stripes, energy), notes,
                        by_unseen=any(refusal.unseen for refusal in refused.values()))  # fmt: skip

    def _left(
        self,
        discovery: Discovery,
        chosen: list[ChannelGate],
        stripes: StripeReport,
        reasons: Mapping[str, str],
    ) -> dict[str, Refusal]:
        """Gate -> why it stays dynamic whatever the metric says."""
        asr = self._options.to == "asr"
        names = {gate.name for gate in chosen}
        left = {gate.name: Refusal("left out by where") for gate in discovery.gates if gate.name not in names}
        seen = {layer.name for layer in stripes.layers}
        for site in plan_bake(self._model, discovery, names, training=asr):
            if site.how == "keep" or not can_hold(site.gate) or (asr and not site.targets):
                left[site.name] = Refusal(site.why, unseen=site.unseen)
            elif site.name not in seen:
                left[site.name] = Refusal("no batch of the data came through it")
            elif asr and site.name in reasons:
                left[site.name] = Refusal(reasons[site.name].partition(":")[0])
        return left

    def _report(self, look: Analysis, verdict: GateDecisions, final: list[BakeSite]) -> BakeReport:
        from stripefold import __version__

        options = self._options
        rows = site_results(
            look.discovery.gates,
            look.stripes,
            verdict,
            final,
            to=options.to,
            priors=look.priors,
            left=look.left,
            budget=options.max_drop,
        )
        named = None if verdict.before is None else ACCURACY if options.metric is None else _name_of(options.metric)
        return BakeReport(
            model=type(self._model).__name__,
            sites=rows,
            constants=options.kind,
            to=options.to,
            images=look.stripes.images,
            metric=named,
            before=verdict.before,
            constant=verdict.constant,
            recalibrated=verdict.recalibrated,
            finetuned=verdict.finetuned,
            settled=verdict.settled,
            settle=None if options.settle is None else f"{options.settle.way}, {options.settle.steps} steps",
            max_drop=options.max_drop,
            norms=verdict.norms,
            notes=(*look.notes, *verdict.notes),
            versions={"stripefold": __version__, "torch": str(torch.__version__)},
        )

    def _measured(self, made: nn.Module, report: BakeReport, judged: tuple[GateJudge, GateDecisions]) -> BakeReport:
        """The report with what only the baked model can tell."""
        judge, verdict = judged
        after = on_copies(lambda own, model: judge.on(model).check_returned(own, verdict), made, self._model)
        speed = self._agreed(lambda: self._speed(made)) if self._options.speed else None
        return replace(report, after=after, speed=speed)

    def _speed(self, made: nn.Module) -> Speed:
        with (
            preserve_state(self._model, own_parameters=True) as before,
            preserve_state(made, own_parameters=True) as after,
        ):
            pass  # the copies are what is wanted: nothing that watches a run may slow it down
        return side_by_side(before, after, self._data.first())


def _unseen(layers: Mapping[str, object]) -> list[str]:
    """What is to be said about layers that did not run."""
    if not layers:
        return []
    return [
        f"{unseen_in_words(layers)} {DID_NOT_RUN}: what such a layer may meet was left as it is, and gates on its path "
        "are not seen. Give example=[...], a list with an input for each way in which the model is used"
    ]


def _announce(unseen: Sequence[str]) -> None:
    """One warning where gates were not folded because of layers that did not run."""
    if unseen:
        warnings.warn(
            f"{unseen_in_words(unseen)} {DID_NOT_RUN}: constants that such a layer may meet were not folded. To fold "
            "there as well, give example=[...], a list with an input for each way in which the model is used",
            stacklevel=4,
        )


def _name_of(metric: Metric) -> str:
    return getattr(metric, "__name__", type(metric).__name__)
