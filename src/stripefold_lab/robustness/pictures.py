"""The curves: score against severity, one panel for each kind of disturbance; made without pyplot."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stripefold_lab.robustness.kinds import KINDS
from stripefold_lab.robustness.report import CLEAN
from stripefold_lab.training.tasks import get_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stripefold_lab.robustness.report import RobustnessReport

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's, told apart by every reader."""
MARKERS = "osD^v<>P"
_ACROSS = 4


def draw_curves(report: RobustnessReport) -> Figure:
    """Mean over the seeds, with a bar of one standard deviation where there are several.

    A dashed line is a folded network: where all is well it lies on the one of its attached twin.

    Args:
        report: With at least one kind.
    """
    from matplotlib.figure import Figure

    kinds = report.kinds
    across = min(_ACROSS, len(kinds))
    down = math.ceil(len(kinds) / across)
    figure = Figure(figsize=(2.6 * across + 0.6, 2.1 * down + 0.9), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, kind in zip(panels, kinds, strict=False):
        _panel(axes, report, kind)
    for axes in panels[len(kinds) :]:
        axes.set_axis_off()
    figure.supxlabel("severity (0: clean)", fontsize="medium")
    figure.supylabel(f"{get_task(report.task).score.word}, percent", fontsize="medium")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        lines, labels, loc="outside upper center", ncols=min(across, len(labels)), fontsize="small", frameon=False
    )
    return figure


def _panel(axes: Axes, report: RobustnessReport, kind: str) -> None:
    for place, network in enumerate(report.networks):
        scores = [*report.of(network, CLEAN), *report.of(network, kind)]
        folded = network.endswith("folded")
        axes.errorbar(
            [score.severity for score in scores],
            [100 * score.mean for score in scores],
            yerr=[100 * (score.spread or 0.0) for score in scores],
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            linestyle="--" if folded else "-",
            # The folded network's marks lie on those of the attached one: hollow and larger, both are seen.
            markerfacecolor="none" if folded else None,
            markersize=6 if folded else 3.5,
            linewidth=1.2,
            capsize=2,
            label=network,
        )
    axes.set_title(kind, fontsize="medium")
    axes.set_xticks(range(6))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.annotate(KINDS[kind].unit, (0.03, 0.03), xycoords="axes fraction", fontsize="x-small", color="#5f6b76")
