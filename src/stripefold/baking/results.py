"""From what was decided and done to the rows of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stripefold.baking.judge import GateDecisions
from stripefold.baking.options import To
from stripefold.baking.report import GateOutcome, SiteResult
from stripefold.baking.sites import BakeSite
from stripefold.stripe.discover import ChannelGate
from stripefold.stripe.report import StripeReport


def site_results(
    gates: Sequence[ChannelGate],
    stripes: StripeReport,
    verdict: GateDecisions,
    final: Sequence[BakeSite],
    *,
    to: To,
    priors: Mapping[str, float],
    left: Mapping[str, str],
    budget: float | None,
) -> tuple[SiteResult, ...]:
    """One row per gate, in the order of the network.

    Args:
        gates: all that were found.
        stripes: their statistics.
        verdict: the figures.
        final: how those that were baked were baked.
        to: "plain" or "asr".
        priors: gate -> prior.
        left: gate -> why it could not be baked at all.
        budget: the drop that was allowed, or None.
    """
    layers = {layer.name: layer for layer in stripes.layers}
    baked = {site.name: site for site in final}
    cumulative = {} if verdict.selection is None else verdict.selection.metric
    rows = []
    for gate in gates:
        layer, site = layers.get(gate.name), baked.get(gate.name)
        outcome, place, why = _outcome(site, to) if site is not None else ("dynamic", "", left.get(gate.name, ""))
        if site is None and not why and verdict.before is not None and gate.name in cumulative:
            why = f"over the budget: with it the metric would fall by more than {budget:g}"
        rows.append(
            SiteResult(
                name=gate.name,
                kind=gate.kind,
                channels=gate.channels,
                stripe_index=None if layer is None else layer.stripe_index,
                within_over_mean=None if layer is None else layer.within_over_mean,
                prior=priors.get(gate.name),
                alone=verdict.alone.get(gate.name),
                cumulative=cumulative.get(gate.name),
                outcome=outcome,
                moving_channels=None if layer is None else layer.moving_channels,
                largest_share=None if layer is None else layer.largest_share,
                remaining=0 if site is None or outcome == "dynamic" else site.spare.operations,
                place=place,
                why=why,
            )
        )
    return tuple(rows)


def _outcome(site: BakeSite, to: To) -> tuple[GateOutcome, str, str]:
    """What became of a gate that was to be baked, where it went, and why there."""
    if site.how == "keep" or site.place is None:
        return "dynamic", "", site.why
    if site.spare.costly:
        why = f"{site.spare.operations} operations that computed it go on running in {site.gate.where or 'the model'!r}"
        return "constant", site.place.path, f"{why}: let a module of its own compute the gate"
    if site.how == "multiply":
        return "multiply", site.place.path, site.why
    kinds = "the layer in front" if site.how == "backward" else "the layers behind"
    if to == "asr":
        return "asr", ", ".join(site.layers), f"{site.how}: folds into {kinds}"
    left = "; what it adds stays, one addition per channel: see fold(fuse=True)" if site.gate.affine else ""
    return "folded", ", ".join(site.layers), f"{site.how}, into {kinds}{left}"
