"""``write_report``: one folder with everything that an observation gives to look at."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stripefold.atomic import atomic_path, write_text
from stripefold.errors import ObserveError
from stripefold.html_report.page import render_page
from stripefold.html_report.paper_figures import FORMATS, Width, check_width, write_paper
from stripefold.html_report.pictures import draw_overview, draw_stripes, draw_trajectory
from stripefold.own_files import check_own_files, listed_files, own_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stripefold.stripe.report import StripeReport
    from stripefold.stripe.trajectory import Trajectory

PICTURES, PAGE = "pictures", "index.html"
TABLES = ("stripes.safetensors", "stripes.json", "stripes.csv", "channels.csv")
DRAWING = ("matplotlib", "plotly", "jinja2")
_DPI = 160
_LONGEST_NAME = 80


def write_report(
    report: StripeReport,
    folder: str | os.PathLike[str],
    *,
    trajectory: Trajectory | None = None,
    title: str | None = None,
    paper: Width | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write tables, pictures and the page of one observation.

    ``index.html`` needs no network and no other file, and stays below 6 MB. ``stripes.safetensors`` holds the whole
    report, ``stripes.json`` the same without the kept images' values (both for ``StripeReport.load``), ``stripes.csv``
    a row per gate, ``channels.csv`` a row per channel, ``pictures/`` a PNG per gate and an overview, and
    ``trajectory.json`` and its picture what was recorded over training.

    Args:
        report: What ``observe`` gave.
        folder: Made where it does not exist; a report that lies there is replaced, nothing else.
        trajectory: What was recorded over training.
        title: The page's heading; the model's name where not given.
        paper: Every picture as PDF and SVG, too, for a paper whose column (3.25 inches), text (6.75) or only column
            (``lncs``, 4.8) is so wide.
        progress: Called with the name of each file before it is written.

    Returns:
        The page.

    Raises:
        ConfigError: There is no such width.
        ObserveError: The folder cannot be written, or holds a file of another origin under a name of the report's.
        ModuleNotFoundError: matplotlib, plotly or jinja2 is missing; nothing is written then.
    """
    require(DRAWING, "the report of an observation")
    if paper is not None:
        check_width(paper)
    place = Path(folder).expanduser()
    page = render_page(report, trajectory=trajectory, title=title)
    writers = _tables(report, trajectory) | _pictures(report, trajectory, paper)
    try:
        (place / PICTURES).mkdir(parents=True, exist_ok=True)
        stale = [
            name
            for name in listed_files(place)
            if name.startswith(f"{PICTURES}/") and name not in _files(writers, paper)
        ]
        with own_files(place, [*_files(writers, paper), PAGE], ObserveError):
            for name, write in writers.items():
                if progress is not None:
                    progress(name)
                write(place / name)
            write_text(place / PAGE, page)
            _remove_own(place, stale)
    except OSError as error:
        raise ObserveError(
            f"cannot write the report into {place}: {error.strerror or error}; choose another folder or make room"
        ) from error
    return place / PAGE


def check_report_folder(folder: str | os.PathLike[str]) -> None:
    """Refuse, before an observation is made, a folder in which its report would write over files of another origin.

    Args:
        folder: Need not exist.

    Raises:
        ObserveError: There is such a file.
        ModuleNotFoundError: What draws is not installed.
    """
    require(DRAWING, "the report of an observation")
    check_own_files(Path(folder).expanduser(), (*TABLES, PAGE), ObserveError)


def require(libraries: Iterable[str], what: str) -> None:
    """Refuse before anything is written what could not be drawn.

    Args:
        libraries: What draws.
        what: What they draw, for the message.

    Raises:
        ModuleNotFoundError: One of them is not installed; says how it is.
    """
    name = next((each for each in libraries if importlib.util.find_spec(each) is None), None)
    if name is not None:
        raise ModuleNotFoundError(
            f"{what} is drawn by {name}, which is not installed: pip install 'stripefold[plot]'", name=name
        )


def _tables(report: StripeReport, trajectory: Trajectory | None) -> dict[str, Callable[[Path], object]]:
    # The kept values as text would be some fifty times the rest.
    brief = replace(report, layers=tuple(replace(layer, sample=layer.sample[:0]) for layer in report.layers))
    writers: dict[str, Callable[[Path], object]] = {
        "stripes.safetensors": report.save,
        "stripes.json": brief.save,
        "stripes.csv": report.to_csv,
        "channels.csv": lambda path: report.to_csv(path, by_channel=True),
    }
    if trajectory is not None:
        writers["trajectory.json"] = trajectory.save
    return writers


def _pictures(
    report: StripeReport, trajectory: Trajectory | None, paper: Width | None
) -> dict[str, Callable[[Path], object]]:
    drawings: dict[str, Callable[[], Figure]] = {}
    if report.layers:
        drawings["overview"] = lambda: draw_overview(report)
    if trajectory is not None and trajectory.epochs and trajectory.gates:
        drawings["trajectory"] = lambda: draw_trajectory(trajectory)
    width = len(str(len(report.layers)))
    for number, layer in enumerate(report.layers, start=1):
        name = re.sub(r"[^A-Za-z0-9._#-]+", "_", layer.name)[-_LONGEST_NAME:] or "model"
        drawings[f"gate-{number:0{width}d}-{name}"] = lambda layer=layer: draw_stripes(layer)  # type: ignore[misc]
    return {f"{PICTURES}/{name}.png": _saver(draw, paper) for name, draw in drawings.items()}


def _saver(draw: Callable[[], Figure], paper: Width | None) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        with atomic_path(path) as temporary:
            draw().savefig(temporary, format="png", dpi=_DPI)
        if paper is not None:
            write_paper(draw, path.with_suffix(""), paper)

    return save


def _remove_own(folder: Path, names: Iterable[str]) -> None:
    """Pictures of an earlier report whose gates this one does not have; one that was changed since stays."""
    for name in names:
        with suppress(ObserveError, FileNotFoundError):
            check_own_files(folder, [name], ObserveError)
            (folder / name).unlink()


def _files(writers: Iterable[str], paper: Width | None) -> list[str]:
    """What lies in the folder when all of them are written: each picture for a paper, too."""
    pictures = [name for name in writers if paper is not None and name.startswith(f"{PICTURES}/")]
    return [*writers, *(str(Path(name).with_suffix(f".{form}")) for name in pictures for form in FORMATS)]
