"""`stripefold verify`: do two files hold the same function?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stripefold.errors import VerifyError, printable
from stripefold_lab.cli.arguments import AsJson
from stripefold_lab.cli.output import make_folders, print_json, print_line
from stripefold_lab.cli.users_code import Imports

if TYPE_CHECKING:
    from stripefold_lab.training.loading import LoadedRun


def verify(
    reference: Annotated[Path, typer.Argument(help="A run's folder, a checkpoint, or a safetensors file.")],
    other: Annotated[Path, typer.Argument(help="What should compute the same.")],
    *,
    images: Annotated[int, typer.Option(min=1, help="How many random images to compare on.")] = 8,
    report: Annotated[Path | None, typer.Option(help="Folder for the report: a page, verify.json, layers.csv.")] = None,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Compare two models, judged against the first one's own rounding noise; non-zero exit on a mismatch."""
    _check_folder(report)
    from stripefold_lab.training.loading import load_run

    first = load_run(reference)
    second = load_run(other, like=first)
    title = f"{printable(reference.name)} ({first.kind}) and {printable(other.name)} ({second.kind})"
    try:
        found = _agreement(first, second, images)
    except VerifyError:
        if report is not None:  # a mismatch is what one wants to look at; the error is raised all the same
            _write(_agreement(first, second, images, raise_on_mismatch=False), report, title, aside=True)
        raise
    if as_json:
        print_json({"reference": first.path, "other": second.path, **asdict(found)})
    else:
        print_line(f"{first.path} ({first.kind}) and {second.path} ({second.kind})")
        print_line(found)
    if report is not None:
        _write(found, report, title, aside=as_json)


def _check_folder(report: Path | None) -> None:
    if report is not None:
        from stripefold.html_report.write import VERIFY, check_report_folder

        make_folders(report, None)
        check_report_folder(report, VERIFY)


def _write(found: Any, folder: Path, title: str, *, aside: bool) -> None:
    """The page of the outputs that were compared; of a detector, those before non-maximum suppression."""
    from stripefold.html_report.write import write_report

    print_line(f"written: {write_report(getattr(found, 'heads', found), folder, title=title)}", aside=aside)


def _agreement(first: LoadedRun, second: LoadedRun, images: int, *, raise_on_mismatch: bool = True) -> Any:
    from stripefold_lab.training.tasks import get_task

    example, task = first.spec.example(images), get_task(first.config.task)
    return task.verify(first.model, second.model, example, raise_on_mismatch=raise_on_mismatch)
