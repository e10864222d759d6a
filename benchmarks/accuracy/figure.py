"""The picture of the page: accuracy over the epochs, and what the gates of +SE did, gate by gate."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.accuracy.plan import RESULTS
from benchmarks.accuracy.results import Records
from benchmarks.accuracy.stripes import QUANTITIES, Rows, mean_of
from stripefold.atomic import atomic_path
from stripefold.html_report.paper_figures import write_paper
from stripefold.html_report.pictures import COLOURS, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = {"backbone": GREY, "+SE": "#D55E00", "ASR(SE)": "#0072B2", "scale": "#009E73"}
"""Okabe and Ito's, told apart by every reader."""
STRIPES = ("stripe_index", "within_over_mean", "share_of_class", "share_of_few")
SHORT = {
    "stripe_index": "stripe index",
    "within_over_mean": "deviation / mean",
    "share_of_class": "share of the class",
    "share_of_few": "share of the few",
}


def draw_curves(study: str, records: Records) -> Figure:
    """Mean over the finished seeds at each epoch, the single runs thin behind it.

    Args:
        study: Name of a study with at least one finished run.
        records: What is there.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, colour in LINES.items():
        runs = [found["test_accuracy"] for (own, other, _), found in records.items() if (own, other) == (study, name)]
        if not runs:
            continue
        epochs = range(1, len(runs[0]) + 1)
        for run in runs:
            axes.plot(epochs, run, color=colour, linewidth=0.5, alpha=0.35)
        mean = [statistics.fmean(values) for values in zip(*runs, strict=True)]
        axes.plot(epochs, mean, color=colour, linewidth=1.3, label=f"{name} ({len(runs)})")
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize="small", frameon=False)
    axes.grid(alpha=0.25)
    return figure


def draw_stripes_over(rows: Rows, title: str) -> Figure:
    """Each quantity over the epochs, a line per gate, dark (input) to light (output); mean over the seeds.

    Args:
        rows: What the seeds observed.
        title: Of which runs.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    for axes, name in zip(figure.subplots(2, 2, sharex=True).flatten(), STRIPES, strict=True):
        _lines(axes, name, rows)
    figure.supxlabel("epoch", fontsize="medium")
    figure.suptitle(title, fontsize="medium")
    return figure


def _lines(axes: Axes, name: str, rows: Rows) -> None:
    from matplotlib import colormaps

    assert name in QUANTITIES
    epochs = sorted(set.intersection(*(set(each) for each in rows)))
    count = len(rows[0][epochs[0]])
    for number in range(count):
        series = [mean_of([each[epoch][number][name] for each in rows]) for epoch in epochs]
        axes.plot(epochs, series, color=colormaps[COLOURS](0.9 * number / max(1, count - 1)), linewidth=1)
    axes.set_ylabel(SHORT[name])
    axes.grid(alpha=0.25)


def write_figures(records: Records, stripes: Mapping[tuple[str, str], Rows], folder: Path = RESULTS) -> list[Path]:
    """Write the pictures that there is something to draw for, as PNG, PDF and SVG.

    Args:
        records: What is there.
        stripes: What was observed.
        folder: Where they go.
    """
    drawings: dict[str, Any] = {}
    if any(name == "main" for name, _, _ in records):
        drawings["curves"] = lambda: draw_curves("main", records)
    if ("main", "+SE") in stripes:
        rows = stripes["main", "+SE"]
        seeds = "one seed" if len(rows) == 1 else f"mean over {len(rows)} seeds"
        title = f"ResNet-20 + SE on CIFAR-100, {seeds}; a line per gate, dark (input) to light (output)"
        drawings["stripes"] = lambda: draw_stripes_over(rows, title)
    files = []
    for name, draw in drawings.items():
        file = folder / f"{name}.png"
        with atomic_path(file) as temporary:
            draw().savefig(temporary, format="png", dpi=150)
        files += [file, *write_paper(draw, folder / name, "text" if name == "stripes" else "column")]
    return files
