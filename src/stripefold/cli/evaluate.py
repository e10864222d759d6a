"""`stripefold eval`: how well does what a run left do on its test images?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stripefold.cli.output import print_line


def evaluate(
    source: Annotated[Path, typer.Argument(help="A run's folder, one of its checkpoints, or its folded.safetensors.")],
) -> None:
    """Measure a model on the test images: accuracy and loss, mIoU, or mAP."""
    from stripefold.training import evaluate as run_evaluation

    result = run_evaluation(source)
    print_line(f"{result.source} ({result.kind})")
    print_line(result)
