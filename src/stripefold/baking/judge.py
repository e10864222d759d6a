"""Decides which gates become constants, on the unchanged model: hooks put constants in the gates' place."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stripefold.asr.gate import StaticGate
from stripefold.baking.batches import Batches
from stripefold.baking.finetune import FineTune, finetune
from stripefold.baking.metric import Accuracy, Metric, measured
from stripefold.baking.options import BakeConfig
from stripefold.baking.override_gates import override_gates
from stripefold.baking.recalibrate import Statistics, norms_behind, recalibrate_
from stripefold.baking.sensitivity import GreedySelection, cheapest_first, greedy, single_gate_metrics
from stripefold.baking.settle import Settling
from stripefold.baking.settle_options import Settle
from stripefold.baking.warm import asr_gates
from stripefold.errors import BakeError
from stripefold.modules.all_or_nothing import AllOrNothing
from stripefold.modules.example import run_example
from stripefold.modules.modules import first_parameter, takes_hooks
from stripefold.stripe.discover import ChannelGate, Discovery

_RELATIVE = 1e-3
"""What no metric need tell apart: one borderline image of a thousand."""
_REPEATS, _SPREADS = 3, 4


@dataclass
class GateDecisions:
    """What was decided, and the figures on the way; see ``BakeReport`` for those.

    Attributes:
        constants: gate -> v (C,) of those that are to be baked.
        alone: gate -> the metric with it alone constant.
        selection: what the greedy search did, with a budget.
        norms: BatchNorms that have new statistics.
        settled: the metric after the weights were trained with the constants.
        trained: the model's own weights and buffers are new.
        notes: for the user.
    """

    constants: dict[str, Tensor] = field(default_factory=dict)
    before: float | None = None
    alone: dict[str, float] = field(default_factory=dict)
    selection: GreedySelection | None = None
    constant: float | None = None
    recalibrated: float | None = None
    finetuned: float | None = None
    settled: float | None = None
    trained: bool = False
    norms: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def judged(self) -> float | None:
        """The metric with what was decided, constants and repairs, before the surgery."""
        steps = (self.finetuned, self.recalibrated, self.settled, self.constant, self.before)
        return next((value for value in steps if value is not None), None)


class GateJudge:
    """Decides which gates become which constants.

    Args:
        model: a copy to work on, undisturbed, in evaluation mode.
        discovery: of it.
        constants: gate -> v (C,) of every gate that may be baked.
        metric: the judge's measure; None: nothing is measured, everything is baked.
        options: of the call.
    """

    def __init__(
        self,
        model: nn.Module,
        discovery: Discovery,
        constants: Mapping[str, Tensor],
        metric: Metric | None,
        options: BakeConfig,
    ) -> None:
        self._model, self._discovery = model, discovery
        self._constants, self._metric, self._options = constants, metric, options
        self._unchanged = AllOrNothing(model, commit=False)

    def on(self, model: nn.Module) -> GateJudge:
        """The same judge with another copy to work on."""
        return GateJudge(model, self._discovery, self._constants, self._metric, self._options)

    def decide(
        self,
        priors: Mapping[str, float],
        calibration: Batches,
        training: Batches,
        descriptors: Mapping[str, Tensor] | None = None,
    ) -> GateDecisions:
        """Measure, choose, and repair; the model is left with the repaired statistics, and with nothing else.

        With ``settle``, all gates that may be baked are, and the model is left with the weights that were trained.

        Args:
            priors: gate -> its prior.
            calibration: for BatchNorm's statistics.
            training: for the constants.
            descriptors: gate -> its mean descriptor (D,); for gates of ASR on the way.
        """
        with ran(self._model) as runs:
            verdict = GateDecisions(before=self._measure({}, "as given"))
        if self._metric is not None and not runs:
            verdict.notes.append("the metric did not run the model that it was given, so that it judged nothing of it")
        chosen = self._choose(verdict, priors)
        verdict.constants = {name: self._constants[name] for name in self._constants if name in chosen}
        if verdict.constants:
            verdict.constant = self._measure(verdict.constants, "with constant gates")
            self._settle(verdict, training, priors, descriptors or {})
            self._recalibrate(verdict, calibration)
            self._finetune(verdict, training)
        return verdict

    def _measure(self, constants: Mapping[str, Tensor], when: str) -> float | None:
        if self._metric is None:
            return None
        # A metric that ends with ``model.train()``, as validation in a training loop does, leaves no trace.
        with self._holding(constants), self._unchanged:
            return measured(self._metric, self._model, when)

    def check_returned(self, made: nn.Module, verdict: GateDecisions) -> float | None:
        """The metric of the model that is returned, which must be what was judged.

        Args:
            made: a copy of it to run, in evaluation mode.
            verdict: of ``decide``.

        Raises:
            BakeError: it breaks the budget, or differs from what was judged by more than the metric's noise.
        """
        if self._metric is None or verdict.judged is None or verdict.before is None:
            return None
        after, drop = measured(self._metric, made, "of the baked model"), self._options.max_drop
        if drop is not None and after < verdict.before - drop:
            more = "settle for more steps" if verdict.trained else "leave out repairs (recalibrate=False)"
            raise BakeError(
                f"the baked model breaks the budget: the metric falls from {verdict.before:g} to {after:g}, allowed "
                f"are {drop:g}; with constant gates it was {verdict.constant}. Leave out gates (where=), {more}, or "
                "allow more (max_drop=)"
            )
        if abs(after - verdict.judged) > _RELATIVE * abs(verdict.judged):
            noise = self._noise(verdict.constants, verdict.judged)
            if abs(after - verdict.judged) > noise + _RELATIVE * max(abs(verdict.judged), abs(verdict.before)):
                raise BakeError(
                    f"the metric gives {after:g} for the baked model and gave {verdict.judged:g} for the same "
                    f"constants put in by hooks, more than its noise ({noise:.2g}): it depends on how the model "
                    "is built or called, not only on what it computes. Give a metric that runs the model it is given"
                )
        return after

    def _noise(self, constants: Mapping[str, Tensor], judged: float) -> float:
        """How much the metric moves when it is asked again, the constants changed as rounding would change them."""
        like = first_parameter(self._model)
        size = 4 * torch.finfo(torch.float32 if like is None else like.dtype).eps
        moved = []
        for seed in range(_REPEATS):
            generator = torch.Generator().manual_seed(seed)
            near = {
                name: v * (1 + size * torch.randn(v.shape, generator=generator, dtype=v.dtype))
                for name, v in constants.items()
            }
            value = self._measure(near, "when it is asked again")
            moved.append(0.0 if value is None else abs(value - judged))
        step = self._metric.step if isinstance(self._metric, Accuracy) else 0.0
        return _SPREADS * max(moved) + 2 * step

    def _with(self, names: Collection[str]) -> float:
        value = self._measure({name: self._constants[name] for name in names}, f"with {', '.join(names)} constant")
        assert value is not None
        return value

    @contextmanager
    def _holding(self, constants: Mapping[str, Tensor]) -> Iterator[None]:
        with override_gates(self._model, self._discovery.gates, constants):
            yield

    def _choose(self, verdict: GateDecisions, priors: Mapping[str, float]) -> Collection[str]:
        options, names = self._options, list(self._constants)
        if options.settle is not None:  # what a gate costs now says little of what it costs once the weights know it
            return names
        judged = options.max_drop is not None or options.validation is not None or options.metric is not None
        if self._metric is None or not judged:
            return names
        verdict.alone = single_gate_metrics(names, self._with, partial(options.tell, "each gate alone"))
        if options.max_drop is None:
            return names
        order = cheapest_first(names, verdict.alone, priors)
        assert verdict.before is not None
        least = verdict.before - options.max_drop
        verdict.selection = greedy(order, self._with, least, partial(options.tell, "gates together"))
        return verdict.selection.baked

    def _recalibrate(self, verdict: GateDecisions, calibration: Batches) -> None:
        wanted = self._options.recalibrate
        if verdict.trained and wanted == "auto":  # the statistics are those of the training
            return
        norms: dict[str, _BatchNorm] = {}
        for graph, gates in zip(self._discovery.trace.graphs, self._discovery.runs, strict=True):
            products = [gate.product for gate in gates if gate.name in verdict.constants]
            norms |= norms_behind(self._model, graph, products) if wanted is not False else {}
        if not norms:
            return
        if wanted == "auto" and self._metric is None:
            verdict.notes.append(
                "BatchNorm statistics were not re-estimated: without a metric nothing says if it helps"
            )
            return
        self._options.tell("BatchNorm statistics")
        before = Statistics.of(norms.values())
        try:
            with self._holding(verdict.constants):
                recalibrate_(self._model, norms, calibration, self._options.process_group)
        except BakeError as error:
            if wanted != "auto":
                raise
            verdict.notes.append(f"BatchNorm statistics were not re-estimated: {error}")
            return
        self._unchanged = AllOrNothing(self._model, commit=False)
        value = self._measure(verdict.constants, "after BatchNorm was re-estimated")
        if wanted == "auto" and value is not None and verdict.constant is not None and value <= verdict.constant:
            before.restore_()
            self._unchanged = AllOrNothing(self._model, commit=False)
            verdict.notes.append(
                f"BatchNorm re-estimated gives {value:.2f}, no better: the statistics stay as they were"
            )
            return
        verdict.recalibrated, verdict.norms = value, tuple(norms)

    def _settle(
        self, verdict: GateDecisions, training: Batches, priors: Mapping[str, float], descriptors: Mapping[str, Tensor]
    ) -> None:
        options: Settle | None = self._options.settle
        if options is None:
            return
        asr: dict[str, StaticGate] = {}
        if options.way == "asr":
            found, reasons = asr_gates(self._model, self._discovery, list(verdict.constants), descriptors)
            asr |= found
            verdict.notes += [f"{name}: a free constant, no gate of ASR: {why}" for name, why in reasons.items()]
        # Those in which a constant errs least move first.
        order = sorted(verdict.constants, key=lambda name: priors.get(name, math.inf))
        start = {name: verdict.constants[name] for name in order}
        settling = Settling(self._model, self._discovery.gates, start, options, training, asr=asr)
        constants = settling.run(lambda step: self._options.tell("settling", step, options.steps))
        verdict.constants, verdict.trained = {name: constants[name] for name in verdict.constants}, True
        verdict.settled = self._measure(verdict.constants, "after the gates have settled")

    def _finetune(self, verdict: GateDecisions, training: Batches) -> None:
        options: FineTune | None = self._options.finetune
        if options is None:
            return
        tell = self._options.tell
        trained = finetune(
            self._model,
            verdict.constants,
            self._holding,
            options,
            batches=training,
            progress=lambda step: tell("training the constants", step, options.steps),
        )
        value = self._measure(trained, "after the constants were trained")
        best = verdict.recalibrated if verdict.recalibrated is not None else verdict.constant
        if value is not None and best is not None and value < best:
            verdict.notes.append(f"the trained constants give {value:.2f}, which is worse: they were dropped")
            return
        verdict.finetuned, verdict.constants = value, trained


@contextmanager
def ran(model: nn.Module) -> Iterator[list[int]]:
    """Holds something once a module of a copy that is worked on was called."""
    found: list[int] = []

    def note(module: nn.Module, args: Any) -> None:
        if not found:
            found.append(1)

    handles = [module.register_forward_pre_hook(note) for module in model.modules() if takes_hooks(module)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def energies(model: nn.Module, gates: Sequence[ChannelGate], inputs: Any) -> dict[str, Tensor]:
    """Mean square of what each gate scales, per channel (C,), over one batch; of gates that are a module's whole work.

    Args:
        model: undisturbed.
        gates: of it.
        inputs: a batch.
    """
    found: dict[str, Tensor] = {}

    def keep(gate: ChannelGate, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach().transpose(0, gate.given_axis).flatten(1)
        found.setdefault(gate.name, x.to(torch.promote_types(x.dtype, torch.float32)).square().mean(1).cpu().double())

    whole = [gate for gate in gates if gate.whole and gate.where]
    handles = [model.get_submodule(gate.where).register_forward_pre_hook(partial(keep, gate)) for gate in whole]
    try:
        run_example(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
