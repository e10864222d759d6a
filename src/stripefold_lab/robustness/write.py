"""``write_robustness``: one folder with the tables and the picture."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

from stripefold.atomic import atomic_path, write_text
from stripefold.errors import ConfigError
from stripefold.html_report.paper_figures import write_paper
from stripefold.html_report.write import require
from stripefold.own_files import own_files
from stripefold_lab.robustness.pictures import draw_curves
from stripefold_lab.robustness.report import RobustnessReport

_DPI = 150
FILES = ("robustness.json", "robustness.csv", "curves.png", "curves.pdf", "curves.svg")
COLUMNS = ("network", "kind", "severity", "strength", "mean", "spread", "seeds", "scores")


def write_robustness(report: RobustnessReport, folder: str | os.PathLike[str]) -> Path:
    """Write ``robustness.json`` (all of it), ``robustness.csv`` (a row per network and disturbance) and the curves.

    ``curves.png`` is for a page, ``curves.pdf`` and ``curves.svg`` are for a paper, as wide as its text.

    Args:
        report: What ``measure_robustness`` gave.
        folder: Made where it does not exist; files of an earlier report are replaced, no others.

    Returns:
        The folder.

    Raises:
        ConfigError: The folder cannot be written, or holds a file of another origin under a name of the report's.
        ModuleNotFoundError: matplotlib is missing; nothing is written then.
    """
    require(["matplotlib"], "the picture of a robustness report")
    place = Path(folder).expanduser()
    figure = draw_curves(report)
    try:
        place.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report.to_dict(), indent=1, allow_nan=False)
        with own_files(place, FILES, ConfigError):
            write_text(place / "robustness.json", text + "\n")
            write_text(place / "robustness.csv", as_csv(report))
            with atomic_path(place / "curves.png") as temporary:
                figure.savefig(temporary, format="png", dpi=_DPI)
            write_paper(lambda: draw_curves(report), place / "curves", "text")
    except OSError as error:
        raise ConfigError(f"cannot write into {place}: {error.strerror or error}; choose another folder") from error
    return place


def as_csv(report: RobustnessReport) -> str:
    """A row per network and disturbance; several seeds' scores in one cell, separated by blanks.

    Args:
        report: What ``measure_robustness`` gave.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for score in report.scores:
        seeds = " ".join(map(str, report.seeds[score.network]))
        spread = "" if score.spread is None else f"{score.spread:.6g}"
        scores = " ".join(f"{each:.6g}" for each in score.scores)
        numbers = [score.severity, f"{score.strength:g}", f"{score.mean:.6g}", spread]
        writer.writerow([score.network, score.kind, *numbers, seeds, scores])
    return text.getvalue()
