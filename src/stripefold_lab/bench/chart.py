"""A picture of a deploy measurement: images per second of every form, one panel per batch size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stripefold.atomic import atomic_path
from stripefold_lab.bench.deploy import STEPS, images_per_second, speed_up
from stripefold_lab.bench.report import Report

STEP_COLOR, OTHER_COLOR, ERROR_COLOR = "#1b6ca8", "#b8c4cc", "#333333"


def draw_deploy(reports: Sequence[Report], path: str | Path) -> None:
    """Draw bars with their quartiles; the steps from the reference's form onwards are coloured.

    Args:
        reports: What `measure_deploy` gave, one per batch size.
        path: The picture, `.png` or `.svg`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # no pyplot: the user's own figures and backend stay as they are

    path = Path(path)
    rows = max(len(report.rows) for report in reports)
    figure = Figure(figsize=(5.5 * len(reports) + 1.5, 0.42 * rows + 1.4), layout="constrained")
    panels = figure.subplots(1, len(reports), squeeze=False, sharey=True)[0]
    for axes, report in zip(panels, reports, strict=True):
        _panel(axes, report)
    panels[0].invert_yaxis()  # the axis is shared
    figure.legend(handles=_legend(reports), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    environment = reports[0].environment
    title = re.sub(r", batch \d+", "", reports[0].title)  # each panel says its own
    figure.suptitle(f"{title}: {environment['device']}, {environment['threads']} CPU threads", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=150)


def _legend(reports: Sequence[Report]) -> list[Any]:
    """What the colours, the thin lines and the figures mean; only of what is drawn."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    steps = {row.name in STEPS for report in reports for row in report.rows}
    handles: list[Any] = []
    if True in steps:
        handles.append(Patch(color=STEP_COLOR, label="step of deployment"))
    if False in steps:
        handles.append(Patch(color=OTHER_COLOR, label="for comparison"))
    quartiles = Line2D([], [], color=ERROR_COLOR, label=f"quartiles; at the end: times {reports[0].rows[0].name}")
    return [*handles, quartiles]


def _panel(axes: Any, report: Report) -> None:
    names = [row.name for row in report.rows]
    batch = report.settings["batch"]
    middle = [images_per_second(report, name) for name in names]
    below = [m - batch / row.seconds.upper for m, row in zip(middle, report.rows, strict=True)]
    above = [batch / row.seconds.lower - m for m, row in zip(middle, report.rows, strict=True)]
    colors = [STEP_COLOR if name in STEPS else OTHER_COLOR for name in names]
    bars = axes.barh(names, middle, xerr=[below, above], color=colors, ecolor=ERROR_COLOR)
    axes.bar_label(bars, [f"{speed_up(report, name):.2f} x" for name in names], padding=4, fontsize=8)
    axes.margins(x=0.15)
    axes.set_xlabel(f"images per second, batch {batch}")
    axes.spines[["top", "right"]].set_visible(False)
