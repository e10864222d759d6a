"""The picture of a sweep: every run a point, beside its setting's mean and interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stripefold.atomic import atomic_path
from stripefold.errors import ConfigError, TrainingError
from stripefold.html_report.paper_figures import write_paper
from stripefold.html_report.pictures import BLUE, GREY
from stripefold_lab.sweep.statistics import LEVEL, Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stripefold_lab.sweep.result import SweepResult

_WIDTH, _ROW, _MARGIN = 9.0, 0.36, 1.5  # inches
_APART = 0.17
"""How far, in rows, the single runs lie from their mean."""
_STACK = 0.13
"""How far, in rows, equal ones lie from each other."""


def write_pictures(result: SweepResult) -> list[Path]:
    """Write ``results.png``, and ``results.pdf`` and ``results.svg`` for a paper, as wide as its text.

    Args:
        result: What the sweep found.

    Raises:
        ConfigError: If matplotlib is not installed.
        TrainingError: If a file cannot be written.
    """
    import_figure()
    file = result.folder / "results.png"
    try:
        with atomic_path(file) as temporary:
            draw_result(result).savefig(temporary, dpi=160, format="png")
        return [file, *write_paper(lambda: draw_result(result), result.folder / "results", "text")]
    except OSError as error:
        raise TrainingError(f"cannot write {file}: {error.strerror or error}; the same command goes on") from error


def import_figure() -> Any:
    """Matplotlib's class of figures, without pyplot.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"the picture needs matplotlib ({error}): pip install 'stripefold[sweep]'") from error
    return Figure


def draw_result(result: SweepResult) -> Figure:
    """Scores on the left, differences to the control on the right, a row per setting.

    Args:
        result: What the sweep found.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    figure = import_figure()(figsize=(_WIDTH, _MARGIN + _ROW * len(result.rows)), layout="constrained")
    panels = figure.subplots(1, 2 if result.comparisons else 1, sharey=True, squeeze=False)[0]
    _draw(panels[0], [row.score for row in result.rows])
    panels[0].set_xlabel(f"{result.measure.word}, % (test images, last epoch)")
    low, high = panels[0].get_xlim()
    panels[0].set_xlim(max(low, 0), min(high, 100))  # the interval of two runs may know no bounds, the score does
    panels[0].set_yticks(range(len(result.rows)), [row.setting.label for row in result.rows])
    panels[0].set_ylim(len(result.rows) - 0.5, -0.5)
    if result.comparisons:
        panels[1].axvline(0, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        _draw(panels[1], [row.difference for row in result.rows])
        panels[1].set_xlabel(f"difference to {result.control_word}, points (paired by seed)")
    figure.suptitle(result.sweep.title, fontsize="medium")
    figure.supxlabel(_legend(result), fontsize="x-small", color=GREY)
    return figure


def _draw(axes: Axes, rows: Sequence[Estimate | None]) -> None:
    for place, found in enumerate(rows):
        if found is None:
            continue
        values = [round(100 * value, 9) for value in found.values]
        heights = [place + _APART + _STACK * values[:number].count(value) for number, value in enumerate(values)]
        axes.scatter(values, heights, s=16, facecolor="none", edgecolor=GREY, linewidth=0.8)
        if found.low is not None and found.high is not None:
            axes.plot([100 * found.low, 100 * found.high], [place - _APART] * 2, color=BLUE, linewidth=1.4)
            axes.plot(100 * found.mean, place - _APART, color=BLUE, marker="o", markersize=5)
    axes.grid(axis="x", color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)


def _legend(result: SweepResult) -> str:
    """What is drawn, in words; one seed has no mean to draw."""
    counts = sorted({len(row.scores) for row in result.rows})
    runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if counts[-1] <= 1:
        return "circles: single runs, one seed each: nothing can be said about chance"
    words = f"circles: single runs, {runs} seeds a setting; dots and lines: mean and {LEVEL:.0%} interval of each"
    if result.comparisons > 1:
        words += f", not corrected for the {result.comparisons} comparisons"
    return words
