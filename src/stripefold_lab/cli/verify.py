"""`stripefold verify`: do two files hold the same function?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stripefold_lab.cli.output import print_line


def verify(
    reference: Annotated[Path, typer.Argument(help="A run's folder, a checkpoint, or a safetensors file.")],
    other: Annotated[Path, typer.Argument(help="What should compute the same.")],
    *,
    images: Annotated[int, typer.Option(min=1, help="How many random images to compare on.")] = 8,
) -> None:
    """Compare two models, judged against the first one's own rounding noise; non-zero exit on a mismatch."""
    from stripefold_lab.training.agreement import verify_task
    from stripefold_lab.training.loading import load_run

    first = load_run(reference)
    second = load_run(other, like=first)
    print_line(f"{first.path} ({first.kind}) and {second.path} ({second.kind})")
    print_line(verify_task(first.config.task, first.model, second.model, first.spec.example(images)))
