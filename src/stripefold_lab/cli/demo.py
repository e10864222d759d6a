"""`stripefold demo`: the whole lifecycle on real images, in a few minutes."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stripefold_lab.cli.arguments import AsJson
from stripefold_lab.cli.output import print_json, print_line, print_table

if TYPE_CHECKING:
    from stripefold_lab.bench import Report
    from stripefold_lab.training import TrainResult

DESCRIPTIONS = {
    "plain": "backbone",
    "identical copy": "backbone again (the noise)",
    "+ SE": "backbone + SE",
    "ASR(SE)": "ASR(SE) while training",
    "ASR(SE), folded": "ASR(SE), folded",
    "ASR(SE), folded and fused": "ASR(SE), folded and fused",
}


def demo(
    *,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the digits.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each speed.")] = 30,
    output: Annotated[Path | None, typer.Option("-o", "--out", "--output", help="Folder of the run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train ResNet-20 + ASR(SE) on handwritten digits, fold, verify, and time what came out."""
    # Threads that wait must sleep: on a busy machine spinning ones make this ten times slower. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from stripefold_lab.training import load_config, train

    folder = output or free_folder(Path("runs") / "demo")
    changes = {} if epochs is None else {"epochs": epochs}
    config = load_config("digits", run_dir=str(folder), **changes)
    if as_json:
        with redirect_stdout(sys.stderr):  # the lines of the epochs
            result = train(config)
        print_json({**result.to_dict(), "speed": measure(result, rounds).to_dict()})
        return
    print_line(f"1  attach and train: {config.model} + ASR(SE) on {config.data}, {config.epochs} epochs")
    result = train(config)
    print_line(f"   accuracy on the test images: {result.attached.accuracy:.2%}")
    print_line("2  fold: the gates are merged into the layers, a plain ResNet-20 is left")
    print_line(f"   accuracy folded: {result.deployed.accuracy:.2%}")
    print_line("3  verify")
    print_line(f"   {result.verification}")
    print_line("4  speed, measured in alternation\n")
    print_speed(measure(result, rounds))
    print_line(f"Files in {result.run_dir}:")
    for path, meaning in {
        result.folded_file: "the plain backbone, loads without stripefold",
        result.last_checkpoint: "the training model",
        result.summary_file: "what happened",
        result.metrics_file: "one row per epoch",
    }.items():
        print_line(f"  {path}  {meaning}")


def measure(result: TrainResult, rounds: int) -> Report:
    """Time the trained network in its different forms on 64 images."""
    import stripefold as sf
    from stripefold_lab.bench import Settings, compare, inference_candidates

    settings = Settings(rounds=rounds, memory=False)
    images = result.example[:64]
    backbone = sf.detach(result.model)
    candidates = inference_candidates(backbone, images, settings, attached=result.model)
    return compare(f"Inference of {len(images)} images", candidates, settings)


def print_speed(report: Report) -> None:
    """Print images per second and the ratio to the backbone."""
    from stripefold_lab.bench.report import format_seconds

    images = int(report.title.split()[2])
    rows = [
        (
            DESCRIPTIONS.get(row.name, row.name),
            format_seconds(row.seconds.median),
            f"{images / row.seconds.median:.0f}",
            f"{row.ratio.median:.3f}",
            f"{row.ratio.lower:.3f} .. {row.ratio.upper:.3f}",
        )
        for row in report.rows
    ]
    caption = f"medians; {report.environment['device']}, {report.environment['threads']} threads"
    columns = ("model", "time", "images/s", "time / backbone", "quartiles")
    print_table(report.title, columns, rows, caption=caption)


def free_folder(wanted: Path) -> Path:
    """Return the folder, or its first numbered neighbour that does not exist yet."""
    number, folder = 2, wanted
    while folder.exists():
        folder = wanted.with_name(f"{wanted.name}-{number}")
        number += 1
    return folder
