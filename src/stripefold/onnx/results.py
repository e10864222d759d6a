"""From what was seen, decided and done to the rows of the report."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from stripefold.baking.report import SiteResult
from stripefold.onnx.fold import Folded
from stripefold.onnx.judge import OnnxGateDecisions
from stripefold.onnx.observation import Observation


def site_results(
    observation: Observation, verdict: OnnxGateDecisions, folded: Mapping[str, Folded], budget: float | None
) -> tuple[SiteResult, ...]:
    """One row per gate, in the order of the network.

    Args:
        observation: of all gates.
        verdict: the figures.
        folded: gate -> what became of it, for those that were baked.
        budget: the drop that was allowed, or None.
    """
    cumulative = {} if verdict.selection is None else verdict.selection.metric
    rows = []
    for name, seen in observation.gates.items():
        found = folded.get(name)
        why = (
            "not chosen"
            if name not in cumulative
            else f"over the budget: with it the metric would fall by more than {budget:g}"
        )
        rows.append(
            SiteResult(
                name=name,
                kind=seen.gate.kind,
                channels=seen.gate.channels,
                stripe_index=seen.stripe_index,
                within_over_mean=seen.within_over_mean,
                prior=seen.prior,
                alone=verdict.alone.get(name),
                cumulative=cumulative.get(name),
                outcome="dynamic" if found is None else found.outcome,
                place="" if found is None else found.place,
                why=why if found is None else found.why,
                remaining=0 if found is None else found.remaining,
                largest_share=seen.largest_share,
                moving_channels=seen.moving_channels,
            )
        )
    return tuple(rows)


def operations(proto: onnx.ModelProto) -> int:
    """Number of operations of a network; constants and their names are none."""
    return sum(1 for node in proto.graph.node if node.op_type not in ("Constant", "Identity"))
