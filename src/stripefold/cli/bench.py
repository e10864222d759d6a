"""`stripefold bench`: speed and memory of one model, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stripefold.cli.arguments import (
    Attention,
    Device,
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
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model's name; with --table1 resnet164 if not given.")
    ] = None,
    *,
    attention: Attention = "se",
    where: Where = None,
    mode: Annotated[str, typer.Option(help="inference or training.")] = "inference",
    deploy: Annotated[bool, typer.Option("--deploy", help="Every deployed form, in images per second.")] = False,
    table1: Annotated[
        bool,
        typer.Option("--table1", help="The paper's Table 1: parameters and images per second with each attention."),
    ] = False,
    batch: Annotated[
        str | None, typer.Option(help="Images per call: 8 if not given; with --deploy several, 1,32 if not given.")
    ] = None,
    size: Size = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes; 10 if not given.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each candidate.")] = 15,
    device: Device = "cpu",
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="With --deploy: compile too; takes minutes.")
    ] = True,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the result as JSON here; with --deploy a picture too.")
    ] = None,
) -> None:
    """Time backbone, + attention, ASR, folded ... in alternation with an identical copy as the noise floor."""
    sizes = _batches(batch or ("1,32" if deploy else "8"))
    if len(sizes) > 1 and not deploy:
        raise ConfigError(f"--batch {batch}: several sizes need --deploy")
    if table1:
        own = {"--deploy": deploy, "--where": where, "--size": size, "--classes": classes, "--mode": mode != MODES[0]}
        _bench_table1(model, sizes[0], rounds, device, output, [name for name, given in own.items() if given])
        return
    if model is None:
        raise ConfigError("give the name of a model, such as resnet20; only --table1 has one of its own")
    classes = classes or 10
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
    options = {"where": where_option(where)}
    if deploy:
        from stripefold.cli.deploy import bench_deploy

        form = {"attention": attention, "options": options, "compiled": compiled}
        bench_deploy(model, network, [(size, *example.shape[1:]) for size in sizes], settings, form, output=output)
        return
    images, labels = synthetic_batch((sizes[0], *example.shape[1:]), classes, settings)
    if mode == "training":
        candidates = training_candidates(network, (images, labels), settings, attention=attention, options=options)
    else:
        candidates = inference_candidates(network, images, settings, attention=attention, options=options)
    report = compare(f"{model}, {mode}, batch {sizes[0]}", candidates, settings)
    print_report(report)
    if output is not None:
        report.save(output)
        print_line(f"written: {output}")


def _bench_table1(model: str | None, batch: int, rounds: int, device: str, output: Path | None, odd: list[str]) -> None:
    """Measure the paper's Table 1, print it, and keep it where asked for."""
    if odd:
        raise ConfigError(f"{odd[0]} has no meaning with --table1, which is the paper's table; leave it out")
    from stripefold.bench import Settings
    from stripefold.bench.table1 import COLUMNS, NETWORK, measure_table1, save, table
    from stripefold.cli.output import make_folder, print_line, print_table

    check_device(device)
    reports = measure_table1(Settings(rounds=rounds, device=device), batch=batch, model=model or NETWORK)
    for report in reports:
        where = ", ".join(f"{name} {value}" for name, value in report.environment.items())
        caption = f"change: of images/s against the network of the same round; the copy shows the noise. {where}"
        print_table(report.title, COLUMNS, table(report), caption=caption)
    if output is not None:
        make_folder(output.parent)
        save(reports, output)
        print_line(f"written: {output}")


def _batches(text: str) -> list[int]:
    """Batch sizes as they are given on the command line: one, or several with commas between."""
    words = text.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise ConfigError(f"--batch {text!r}: give numbers from 1 on, with commas between")
    return [int(word) for word in words]


def print_report(report: Report) -> None:
    """Print a report as a table with what it was measured on."""
    from stripefold.bench.report import COLUMNS
    from stripefold.cli.output import print_table

    where = ", ".join(f"{name} {value}" for name, value in report.environment.items())
    # The last column, the limits, belongs to the published claims.
    print_table(report.title, COLUMNS[:-1], [row[:-1] for row in report.table()], caption=where)
