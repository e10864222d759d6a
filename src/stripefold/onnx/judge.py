"""Decides which gates become constants, on the unchanged network: constants stand in for gates in one session."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from stripefold.baking.sensitivity import GreedySelection, cheapest_first, greedy, single_gate_metrics
from stripefold.onnx.data import FeedBatches
from stripefold.onnx.metric import (
    ACCURACY,
    AGREEMENT,
    OnnxAccuracy,
    OnnxMetric,
    OutputAgreement,
    RunNetwork,
    as_run,
    measured,
)
from stripefold.onnx.options import Options
from stripefold.onnx.switched import GateConstants, Switched


@dataclass
class OnnxGateDecisions:
    """Which gates become constant, and the figures on the way.

    Attributes:
        metric: what the figures are.
        before: the metric with all gates dynamic.
        alone: gate -> the metric with it alone constant.
        selection: what the greedy search did, with a budget.
        chosen: gates to bake, in the order of the network.
        constant: the metric with these constant.
    """

    metric: str
    before: float
    alone: dict[str, float] = field(default_factory=dict)
    selection: GreedySelection | None = None
    chosen: list[str] = field(default_factory=list)
    constant: float | None = None


class OnnxGateJudge:
    """Decides which gates become constant.

    Args:
        switched: the network.
        constants: gate -> v (C,) of every gate that may be baked.
        names: of the network's inputs.
        batches: what the metric is measured on, if it is not the user's.
        options: of the call.
    """

    def __init__(
        self, switched: Switched, constants: GateConstants, names: Sequence[str], batches: FeedBatches, options: Options
    ) -> None:
        self._switched, self._constants, self._names = switched, constants, names
        self._options = options
        original = as_run(switched.run, names)
        if options.metric is not None:
            self._metric: OnnxMetric = options.metric
            self.name = getattr(options.metric, "__name__", "metric")
        elif batches.first().labels is not None:
            self._metric, self.name = OnnxAccuracy(batches), ACCURACY
        else:
            self._metric, self.name = OutputAgreement(batches, original), AGREEMENT

    def measure(self, run: RunNetwork, when: str) -> float:
        """The metric of a network.

        Raises:
            BakeError: no finite number.
        """
        return measured(self._metric, as_run(run, self._names), when)

    def decide(self, priors: Mapping[str, float]) -> OnnxGateDecisions:
        """Measure and choose.

        Args:
            priors: gate -> a guess of what it costs, which decides between equals.
        """
        options, names = self._options, list(self._constants)
        verdict = OnnxGateDecisions(metric=self.name, before=self.measure(self._switched.run, "as given"), chosen=names)
        if options.price or options.max_drop is not None:
            verdict.alone = single_gate_metrics(names, self._with, partial(options.tell, "each gate alone"))
        if options.max_drop is not None:
            order = cheapest_first(names, verdict.alone, priors)
            least = verdict.before - options.max_drop
            verdict.selection = greedy(order, self._with, least, partial(options.tell, "gates together"))
            verdict.chosen = [name for name in names if name in verdict.selection.baked]
        if verdict.chosen:
            verdict.constant = self._with(verdict.chosen)
        return verdict

    def _with(self, held: Collection[str]) -> float:
        constants = {name: self._constants[name] for name in held}
        return self.measure(lambda feed: self._switched.run(feed, constants), f"with {', '.join(held)} constant")
