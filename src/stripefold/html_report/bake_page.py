"""The page of a bake: what each gate costs, the budget gate by gate, what became of each and why."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from stripefold.baking.sensitivity import cheapest_first
from stripefold.baking.table import SAY
from stripefold.html_report.templates import Tile, fill
from stripefold.html_report.words import count, shown_name

if TYPE_CHECKING:
    from stripefold.baking.report import BakeReport, SiteResult

_KINDS = {
    "folded": "Folded: nothing is left",
    "asr": "Trainable gates that fold later",
    "multiply": "One multiplication remains",
    "constant": "Constant, but still computed",
    "dynamic": "Stay dynamic",
}


def render_bake(report: BakeReport, *, title: str | None = None) -> str:
    """The page as HTML.

    Args:
        report: What ``bake`` gave, of a module or of an ONNX file.
        title: Its heading; the model's name where not given.
    """
    measured = report.before is not None and any(site.alone is not None for site in report.sites)
    metric = report.metric or "metric"
    costs = [_cost(report, site) if measured else _finite(site.prior) for site in report.sites]
    order = _order(report)
    kind = f"change of the {metric}" if measured else "error of a constant, estimated"
    drawn = {
        "gates": [_drawn(site) for site in report.sites],
        "costs": costs,
        "order": order,
        "before": report.before,
        "lowest": None if report.before is None or report.max_drop is None else report.before - report.max_drop,
        "metric": metric,
        "unit": "change" if measured else "error, estimated",
    }
    has_costs = any(cost is not None for cost in costs)
    return fill(
        "bake",
        drawn=drawn if has_costs else None,
        title=title or f"Baked: {report.model or 'a model'}",
        sentence=sentence(report),
        tiles=tiles(report),
        versions=report.versions,
        notes=report.notes,
        costs=has_costs,
        cost_label=f"{kind} for each of {count(len(report.sites), 'gate')}",
        cost_caption=_caption(metric, measured=measured, free=not any(costs)),
        budget=bool(order),
        metric=metric,
        steps=_steps(report),
        outcomes=_outcomes(report),
        sites=[_row(report, site) for site in report.sites],
        images=f"{report.images:,}",
    )


def sentence(report: BakeReport) -> str:
    """What was done and what it cost, for a reader who sees nothing else."""
    model = report.model or "the model"
    if not report.sites:
        return f"{model[:1].upper()}{model[1:]} has no channel attention that depends on the image: nothing was baked."
    verb = "is a constant" if len(report.baked) == 1 else "are constants"
    text = f"{len(report.baked)} of {count(len(report.sites), 'attention gate')} of {model} {verb} now"
    ends = [f"{number} {SAY[key]}" for key in SAY if (number := sum(site.outcome == key for site in report.baked))]
    text += f" ({', '.join(ends)})" if ends else ""
    if report.before is not None and report.after is not None:
        text += f"; {report.metric or 'metric'}: {report.before:.2f} as given, {report.after:.2f} baked"
    return text + "."


def tiles(report: BakeReport) -> list[Tile]:
    """The few figures to see first: value, what it is, and a note."""
    shown: list[Tile] = [(f"{len(report.baked)} of {len(report.sites)}", "gates baked", "")]
    if report.before is not None and report.after is not None:
        budget = "" if report.max_drop is None else f"{report.max_drop:g} may be lost"
        shown += [
            (f"{report.after:.2f}", f"{report.metric or 'metric'}, baked", f"{report.before:.2f} as given"),
            (f"{report.after - report.before:+.2f}", "change", budget),
        ]
    if report.speed is not None:
        speed = report.speed
        shown.append(
            (
                f"{1 / speed.ratio:.2f} x",
                "as fast",
                f"batch {speed.batch} on {speed.device}: {speed.after * 1e3:.1f} ms",
            )
        )
    shown.append((f"{report.images:,}", "images", f"constants: {report.constants}"))
    return shown


def _cost(report: BakeReport, site: SiteResult) -> float | None:
    return None if site.alone is None or report.before is None else _finite(site.alone - report.before)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _drawn(site: SiteResult) -> dict[str, Any]:
    return {
        "name": shown_name(site.name),
        "outcome": site.outcome,
        "said": SAY[site.outcome],
        "cumulative": _finite(site.cumulative),
    }


def _order(report: BakeReport) -> list[int]:
    """Places of the gates in the order in which the budget was spent, or none where there was no budget."""
    tried = {site.name: place for place, site in enumerate(report.sites) if _finite(site.cumulative) is not None}
    if report.before is None:
        return []
    sites = [report.sites[place] for place in tried.values()]
    alone = {site.name: site.alone for site in sites if site.alone is not None}
    priors = {site.name: site.prior for site in sites if site.prior is not None}
    return [tried[name] for name in cheapest_first(list(tried), alone, priors)]


def _caption(metric: str, *, measured: bool, free: bool) -> str:
    if not measured:
        return (
            "No metric was asked for. This is an estimate: the relative squared error that a constant makes in what "
            "the gate scales."
        )
    text = f"How the {metric} changes with this gate alone constant and all others as they were. Below 0: it is worse."
    return f"{text} Here no gate alone changes it." if free else text


def _steps(report: BakeReport) -> list[tuple[str, float, float | None]]:
    named = (
        ("as given", report.before),
        ("gates constant", report.constant),
        ("BatchNorm statistics anew", report.recalibrated),
        ("constants trained", report.finetuned),
        ("all weights trained", report.settled),
        ("baked", report.after),
    )
    steps: list[tuple[str, float, float | None]] = []
    for name, value in named:
        if value is not None:
            steps.append((name, value, value - steps[0][1] if steps and report.before is not None else None))
    return steps


def _outcomes(report: BakeReport) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """For each kind of outcome: the reasons, each with its gates."""
    found: list[tuple[str, list[tuple[str, list[str]]]]] = []
    for outcome, said in _KINDS.items():
        groups: dict[str, list[str]] = {}
        for site in report.sites:
            if site.outcome == outcome:
                groups.setdefault(site.why, []).append(shown_name(site.name))
        if groups:
            found.append((f"{said} ({sum(map(len, groups.values()))})", list(groups.items())))
    return found


def _row(report: BakeReport, site: SiteResult) -> dict[str, Any]:
    return {
        "name": shown_name(site.name),
        "kind": site.kind,
        "channels": site.channels,
        "stripe_index": _finite(site.stripe_index),
        "within_over_mean": _finite(site.within_over_mean),
        "alone": _cost(report, site),
        "cumulative": _finite(site.cumulative),
        "result": SAY[site.outcome],
        "place": site.place,
    }
