"""The page of a comparison of two models: the verdict, and how far each common layer is from the other model's."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import stripefold
from stripefold.atomic import write_text
from stripefold.documents import finite
from stripefold.html_report.templates import Tile, fill
from stripefold.html_report.words import shown_name

if TYPE_CHECKING:
    from stripefold.folding.verify import EquivalenceReport


def render_verify(report: EquivalenceReport, *, title: str | None = None) -> str:
    """The page as HTML.

    Args:
        report: What ``verify`` gave.
        title: Its heading.
    """
    layers = [_row(name, error, report.tolerance) for name, error in report.layers]
    drawn = {"layers": [layer[:2] for layer in layers], "tolerance": _bounded(report.tolerance)}
    return fill(
        "verify",
        drawn=drawn if layers else None,
        title=title or "Do two models compute the same?",
        sentence=sentence(report),
        tiles=tiles(report),
        versions={"stripefold": stripefold.__version__},
        notes=_notes(report),
        layers=layers,
        largest=_short(max((error for _, error, *_ in layers), default=0.0)),
        dtype=report.dtype,
        worst_output=report.worst_output,
    )


def sentence(report: EquivalenceReport) -> str:
    """The verdict, for a reader who sees nothing else."""
    verdict = "Yes" if report.passed else "No"
    return (
        f"{verdict}: in {report.dtype} the outputs differ by {_short(report.error)} of their largest value, and "
        f"{_short(report.tolerance)} is allowed."
    )


def tiles(report: EquivalenceReport) -> list[Tile]:
    """The few figures to see first: value, what it is, and a note."""
    shown: list[Tile] = [
        ("equivalent" if report.passed else "different", "verdict", f"in {report.dtype}"),
        (_short(report.error), "relative error", ""),
        (_short(report.tolerance), "allowed", ""),
    ]
    if report.dtype != "float64":
        shown.append((_short(report.reference_error), "the first model's own rounding", ""))
    if report.agreement is not None:
        shown.append((f"{100 * report.agreement:.2f} %", "predictions agree", ""))
    if report.worst_layer is not None:
        name, error = report.worst_layer
        shown.append((_short(error), "worst layer", shown_name(name) if error else "all the same"))
    if report.inputs > 1:
        shown.append((f"{report.inputs}", "inputs", f"shown: the worst, number {report.worst_input + 1}"))
    return shown


def save_json(report: EquivalenceReport, path: Path) -> None:
    """Write everything as JSON; what is not finite becomes null.

    Args:
        report: What ``verify`` gave.
        path: The file.
    """
    write_text(path, json.dumps(finite(asdict(report)), indent=1, allow_nan=False) + "\n")


def save_layers(report: EquivalenceReport, path: Path) -> None:
    """Write one line per common layer.

    Args:
        report: What ``verify`` gave.
        path: The file.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "error"])
    writer.writerows(report.layers)
    write_text(path, text.getvalue())


def _notes(report: EquivalenceReport) -> list[str]:
    notes = []
    if report.blind:
        notes.append("The outputs are the same for every sample, so that only the layers say something.")
    if report.fast_path is not None:
        notes.append(f"{report.fast_path[:1].upper()}{report.fast_path[1:]}.")
    return notes


def _bounded(value: float) -> float:
    """A number that JSON and a picture can hold; infinite and NaN are far above everything."""
    return value if math.isfinite(value) else 1e30


def _row(name: str, error: float, allowed: float) -> tuple[str, float, float, tuple[str, str]]:
    """A layer's name, its error, that in parts of what is allowed, and both as they are shown."""
    part = _bounded(error) / allowed if allowed > 0 else 0.0
    said = (
        f"{part:.0%}".replace("%", " %") if part < 10 else f"{part:,.0f} times" if part < 1e9 else f"{part:.0e} times"
    )
    return shown_name(name), _bounded(error), part, (_short(error), said if allowed > 0 else "–")


def _short(error: float) -> str:
    """Two digits.

    >>> _short(0.0), _short(3.14e-7), _short(1.449)
    ('0', '3.1e-07', '1.4')
    """
    return "0" if error == 0 else f"{error:.2g}" if error >= 0.01 else f"{error:.1e}"
