"""`stripefold verify`: do two files hold the same function?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stripefold_lab.cli.arguments import AsJson
from stripefold_lab.cli.output import print_json, print_line

if TYPE_CHECKING:
    from stripefold_lab.training.loading import LoadedRun


def verify(
    reference: Annotated[Path, typer.Argument(help="A run's folder, a checkpoint, or a safetensors file.")],
    other: Annotated[Path, typer.Argument(help="What should compute the same.")],
    *,
    images: Annotated[int, typer.Option(min=1, help="How many random images to compare on.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Compare two models, judged against the first one's own rounding noise; non-zero exit on a mismatch."""
    from stripefold_lab.training.loading import load_run

    first = load_run(reference)
    second = load_run(other, like=first)
    if as_json:
        print_json({"reference": first.path, "other": second.path, **asdict(_agreement(first, second, images))})
        return
    print_line(f"{first.path} ({first.kind}) and {second.path} ({second.kind})")
    print_line(_agreement(first, second, images))


def _agreement(first: LoadedRun, second: LoadedRun, images: int) -> Any:
    from stripefold_lab.training.agreement import verify_task

    return verify_task(first.config.task, first.model, second.model, first.spec.example(images))
