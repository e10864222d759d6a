"""A bake report as text of at most 100 columns."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stripefold.baking.report import BakeReport, SiteResult

WIDTH = 100
_NAME, _KIND = 34, 20
_FEW = 8
"""Less than this fraction of the channels is few."""
SAY = {"folded": "folded", "multiply": "multiply", "asr": "ASR gate", "dynamic": "dynamic",
       "constant": "constant, still computed"}  # fmt: skip


def as_text(report: BakeReport) -> str:
    """The table, the reasons and the figures below it."""
    lines = [*wrapped(_headline(report)), "", _header(), *(_row(report, site) for site in report.sites)]
    return "\n".join([*lines, "", *_reasons(report), *_figures(report)])


def _headline(report: BakeReport) -> str:
    parts = [f"{count} {say}" for key, say in SAY.items() if (count := sum(s.outcome == key for s in report.baked))]
    if report.still_computed:
        left = sum(site.remaining for site in report.still_computed)
        parts.append(f"{len(report.still_computed)} constant, still computed by {left} operations")
    ends = f" ({', '.join(parts)})" if parts else ""
    return (
        f"baked {report.model}: {len(report.baked)} of {len(report.sites)} gates{ends}; constants: "
        f"{report.constants} over {report.images} images"
    )


def _header() -> str:
    return f"{'gate':<{_NAME}} {'kind':<{_KIND}} {'C':>5} {'index':>6} {'std/|v|':>8} {'alone':>8}  result"


def _row(report: BakeReport, site: SiteResult) -> str:
    alone = "-" if site.alone is None or report.before is None else f"{site.alone - report.before:+.2f}"
    ratio = "-" if site.within_over_mean is None else f"{site.within_over_mean:.3f}"
    index = "-" if site.stripe_index is None else f"{site.stripe_index:.3f}"
    return (
        f"{cut(site.name or '(the model)', _NAME):<{_NAME}} {cut(site.kind, _KIND):<{_KIND}} {site.channels:>5} "
        f"{index:>6} {ratio:>8} {alone:>8}  {SAY[site.outcome].rpartition(', ')[2]}"
    )


def _reasons(report: BakeReport) -> list[str]:
    """Where each kind of outcome went, gates of one reason together."""
    groups: dict[str, list[str]] = {}
    for site in report.sites:
        groups.setdefault(f"{SAY[site.outcome]}: {site.why}" if site.why else "", []).append(site.name or "(the model)")
    return [line for why, names in groups.items() if why for line in wrapped(f"{why} - {some(names)}")]


def _figures(report: BakeReport) -> list[str]:
    lines = []
    steps = {
        "as given": report.before,
        "with constants": report.constant,
        "settled": report.settled,
        "BatchNorm re-estimated": report.recalibrated,
        "constants trained": report.finetuned,
        "returned": report.after,
    }
    shown = [f"{name} {value:.2f}" for name, value in steps.items() if value is not None]
    if shown:
        lines += wrapped(f"{report.metric}: {', '.join(shown)}")
    if report.settle is not None:
        lines.append(f"settled: all weights were trained with the constants ({report.settle})")
    if any(site.alone is not None for site in report.sites):
        lines.append("alone: change of the metric when this gate alone is constant")
    lines += _moving(report)
    lines.append("index: 1 where every image gets the same vector; std/|v|: deviation over images / mean of |v|")
    if report.max_drop is not None:
        lines.append(f"budget: the metric may fall by {report.max_drop:g} before any repair")
    if report.speed is not None:
        before, after = 1e3 * report.speed.before, 1e3 * report.speed.after
        lines.append(
            f"speed: {before:.2f} -> {after:.2f} ms for {report.speed.batch} images on {report.speed.device} "
            f"({report.speed.ratio:.3f} x)"
        )
    return [*lines, *(line for note in report.notes for line in wrapped(note))]


def _moving(report: BakeReport) -> list[str]:
    """The gates in which a few channels hold most of the variance, so that the mean deviation misleads."""
    few = [
        f"{site.name or '(the model)'} ({site.moving_channels:.1f} of {site.channels}, {site.largest_share:.0%})"
        for site in report.sites
        if site.moving_channels and site.largest_share and site.moving_channels < site.channels / _FEW
    ]
    if not few:
        return []
    told = (
        f"few channels move (effective number, share of the largest): {some(few)}; a gate that is kept for those alone"
    )
    return wrapped(f"{told} saves nothing: pooling and first layer stay")


def cut(text: str, width: int) -> str:
    """The end of a path tells more than its start."""
    return text if len(text) <= width else "..." + text[3 - width :]


def some(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def wrapped(text: str) -> list[str]:
    """The lines of a text below a table."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
