"""``write_report``: one folder with everything that an observation, a bake or a comparison gives to look at."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stripefold.atomic import atomic_path, write_text
from stripefold.baking.report import BakeReport
from stripefold.errors import ConfigError, ObserveError
from stripefold.folding.verify import EquivalenceReport
from stripefold.html_report.bake_page import render_bake
from stripefold.html_report.page import render_page
from stripefold.html_report.paper_figures import FORMATS, Width, check_width, write_paper
from stripefold.html_report.pictures import draw_overview, draw_stripes, draw_trajectory
from stripefold.html_report.verify_page import render_verify, save_json, save_layers
from stripefold.own_files import check_own_files, listed_files, own_files
from stripefold.stripe.report import StripeReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stripefold.stripe.trajectory import Trajectory

PICTURES, PAGE = "pictures", "index.html"
TABLES = ("stripes.safetensors", "stripes.json", "stripes.csv", "channels.csv")
BAKE, VERIFY = ("bake.json", "bake.csv"), ("verify.json", "layers.csv")
DRAWING = ("matplotlib", "plotly", "jinja2")
_DPI = 160
_LONGEST_NAME = 80


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What a report's folder is to hold: its page, and what writes each other file."""

    page: str
    writers: Mapping[str, Callable[[Path], object]]
    paper: Width | None = None

    @property
    def files(self) -> list[str]:
        return _files(self.writers, self.paper)


def write_report(
    report: StripeReport | BakeReport | EquivalenceReport,
    folder: str | os.PathLike[str],
    *,
    trajectory: Trajectory | None = None,
    title: str | None = None,
    paper: Width | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write the page of an observation, a bake or a comparison, with its tables and pictures.

    ``index.html`` needs no network and no other file, sends nothing anywhere, and stays below 6 MB.

    Of an observation, ``stripes.safetensors`` holds the whole report, ``stripes.json`` the same without the kept
    images' values (both for ``StripeReport.load``), ``stripes.csv`` a row per gate, ``channels.csv`` a row per channel,
    ``pictures/`` a PNG per gate and an overview, and ``trajectory.json`` and its picture what was recorded over
    training. Of a bake, ``bake.json`` holds the whole report and ``bake.csv`` a row per gate; of a comparison,
    ``verify.json`` and ``layers.csv`` likewise.

    Args:
        report: What ``observe``, ``bake`` or ``verify`` gave.
        folder: Made where it does not exist; a report that lies there is replaced, nothing else.
        trajectory: What was recorded over training; for an observation.
        title: The page's heading; the model's name where not given.
        paper: Every picture of an observation as PDF and SVG, too, for a paper whose column (3.25 inches), text (6.75)
            or only column (``lncs``, 4.8) is so wide.
        progress: Called with the name of each file before it is written.

    Returns:
        The page.

    Raises:
        ConfigError: There is no such width or no page of such a report, or an argument is not for this one.
        ObserveError: The folder cannot be written, or holds a file of another origin under a name of the report's.
        ModuleNotFoundError: matplotlib, plotly or jinja2 is missing; nothing is written then.
    """
    require(DRAWING, "a report")
    content = _content(report, trajectory, title, paper)
    place = Path(folder).expanduser()
    try:
        (place / PICTURES if isinstance(report, StripeReport) else place).mkdir(parents=True, exist_ok=True)
        stale = [name for name in listed_files(place) if name.startswith(f"{PICTURES}/") and name not in content.files]
        with own_files(place, [*content.files, PAGE], ObserveError):
            for name, write in content.writers.items():
                if progress is not None:
                    progress(name)
                write(place / name)
            write_text(place / PAGE, content.page)
            _remove_own(place, stale)
    except OSError as error:
        raise ObserveError(
            f"cannot write the report into {place}: {error.strerror or error}; choose another folder or make room"
        ) from error
    return place / PAGE


def _content(
    report: StripeReport | BakeReport | EquivalenceReport,
    trajectory: Trajectory | None,
    title: str | None,
    paper: Width | None,
) -> _Content:
    if paper is not None:
        check_width(paper)
    if isinstance(report, StripeReport):
        page = render_page(report, trajectory=trajectory, title=title)
        writers = _tables(report, trajectory) | _pictures(report, trajectory, paper)
        return _Content(page=page, writers=writers, paper=paper)
    if not isinstance(report, (BakeReport, EquivalenceReport)):
        raise ConfigError(
            f"there is no page of {type(report).__name__}: give what observe, bake or verify returned (of a folded or "
            "exported model, verify it and give that report)"
        )
    if trajectory is not None or paper is not None:
        given = "trajectory=" if trajectory is not None else "paper="
        raise ConfigError(f"{given} is for the report of an observation, not for {type(report).__name__}: leave it out")
    if isinstance(report, BakeReport):
        baked, to_csv = report.save, report.to_csv
        return _Content(page=render_bake(report, title=title), writers={BAKE[0]: baked, BAKE[1]: to_csv})
    compared = report
    return _Content(
        page=render_verify(compared, title=title),
        writers={
            VERIFY[0]: lambda path: save_json(compared, path),
            VERIFY[1]: lambda path: save_layers(compared, path),
        },
    )


def check_report_folder(folder: str | os.PathLike[str], tables: Iterable[str] = TABLES) -> None:
    """Refuse, before the work is done, a folder in which its report would write over files of another origin.

    Args:
        folder: Need not exist.
        tables: What is to be written beside the page.

    Raises:
        ObserveError: There is such a file.
        ModuleNotFoundError: What draws is not installed.
    """
    require(DRAWING, "a report")
    check_own_files(Path(folder).expanduser(), (*tables, PAGE), ObserveError)


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
