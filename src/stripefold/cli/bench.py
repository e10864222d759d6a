"""`stripefold bench`: speed and memory of one model, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stripefold.cli.arguments import (
    Attention,
    Classes,
    Device,
    ModelName,
    Size,
    Where,
    check_device,
    named_model,
    where_option,
)
from stripefold.errors import ConfigError

if TYPE_CHECKING:
    from stripefold.bench import Report

MODES = ("inference", "training")


def bench(
    model: ModelName,
    *,
    attention: Attention = "se",
    where: Where = None,
    mode: Annotated[str, typer.Option(help="inference or training.")] = "inference",
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 8,
    size: Size = None,
    classes: Classes = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each candidate.")] = 15,
    device: Device = "cpu",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the result as JSON here.")] = None,
) -> None:
    """Time backbone, + attention, ASR, folded ... in alternation with an identical copy as the noise floor."""
    from stripefold.bench import Settings, compare, inference_candidates, synthetic_batch, training_candidates
    from stripefold.cli.output import print_line
    from stripefold.surgery.example import infer_example

    if mode not in MODES:
        raise ConfigError(f"--mode {mode!r} is unknown, choose {' or '.join(MODES)}")
    network = named_model(model, classes=classes, size=size)
    example = infer_example(network)
    if example is None:
        raise ConfigError(f"{model!r} does not say which images it takes, give --size")
    check_device(device)
    settings = Settings(rounds=rounds, device=device)
    images, labels = synthetic_batch((batch, *example.shape[1:]), classes, settings)
    options = {"where": where_option(where)}
    if mode == "training":
        candidates = training_candidates(network, (images, labels), settings, attention=attention, options=options)
    else:
        candidates = inference_candidates(network, images, settings, attention=attention, options=options)
    report = compare(f"{model}, {mode}, batch {batch}", candidates, settings)
    print_report(report)
    if output is not None:
        report.save(output)
        print_line(f"written: {output}")


def print_report(report: Report) -> None:
    """Print a report as a table with what it was measured on."""
    from stripefold.bench.report import COLUMNS
    from stripefold.cli.output import print_table

    where = ", ".join(f"{name} {value}" for name, value in report.environment.items())
    # The last column, the limits, belongs to the published claims.
    print_table(report.title, COLUMNS[:-1], [row[:-1] for row in report.table()], caption=where)
