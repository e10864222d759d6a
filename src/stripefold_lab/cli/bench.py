"""`stripefold bench`: speed and memory of one model, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stripefold.errors import ConfigError
from stripefold_lab.cli.arguments import (
    AsJson,
    Attention,
    Device,
    Size,
    WhereOption,
    named_model,
    resolve_device,
    where_option,
)
from stripefold_lab.cli.users_code import Imports
from stripefold_lab.names import check_model_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from stripefold_lab.bench import Report, Settings

MODES = ("inference", "training")


def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model's name; with --table1 resnet164 if not given.")
    ] = None,
    *,
    attention: Attention = "se",
    where: WhereOption = None,
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
    device: Device = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="With --deploy: compile too; takes minutes.")
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--out", "--output", help="Write JSON here; with --deploy a picture too."),
    ] = None,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Time backbone, + attention, ASR, folded ... in alternation with an identical copy as the noise floor."""
    if model is not None:
        check_model_name(model)
    from stripefold.modules.example import infer_example
    from stripefold_lab.bench import Settings
    from stripefold_lab.cli.output import check_result_files

    device = resolve_device(device)
    sizes = _batches(batch or ("1,32" if deploy else "8"))
    if len(sizes) > 1 and not deploy:
        raise ConfigError(f"--batch {batch}: several sizes need --deploy")
    if output is not None:
        check_result_files([output, output.with_suffix(".png")] if deploy else [output])
    if table1:
        own = {"--deploy": deploy, "--where": where, "--size": size, "--classes": classes, "--mode": mode != MODES[0]}
        _refuse_with_table1(own)
        _bench_table1(model, sizes[0], Settings(rounds=rounds, device=device), output, as_json=as_json)
        return
    if model is None:
        raise ConfigError("give the name of a model, such as resnet20; only --table1 has one of its own")
    if mode not in MODES:
        raise ConfigError(f"--mode {mode!r} is unknown, choose {' or '.join(MODES)}")
    network = named_model(model, classes=classes or 10, size=size)
    example = infer_example(network)
    if example is None:
        raise ConfigError(f"{model!r} does not say which images it takes, give --size")
    settings = Settings(rounds=rounds, device=device)
    form = {"attention": attention, "options": {"where": where_option(where)}}
    shapes = [(images, *example.shape[1:]) for images in sizes]
    if deploy:
        from stripefold_lab.cli.deploy import bench_deploy

        deployed = {**form, "compiled": compiled}
        bench_deploy(model, network, shapes, settings, deployed, output=output, as_json=as_json)
        return
    title = f"{model}, {mode}, batch {sizes[0]}"
    _tell(_compared(title, network, shapes[0], settings, classes=classes or 10, mode=mode, form=form), output, as_json)


def _tell(report: Report, output: Path | None, as_json: bool) -> None:
    """Write the report where asked for, and print it."""
    from stripefold_lab.cli.output import print_json, print_line, result_files

    if output is not None:
        with result_files([output]):
            report.save(output)
    print_json(report.to_dict()) if as_json else print_report(report)
    if output is not None:
        print_line(f"written: {output}", aside=as_json)


def _compared(
    title: str,
    network: nn.Module,
    shape: tuple[int, ...],
    settings: Settings,
    *,
    classes: int,
    mode: str,
    form: Mapping[str, Any],
) -> Report:
    """Time the candidates of a mode."""
    from stripefold_lab.bench import compare, inference_candidates, synthetic_batch, training_candidates

    images, labels = synthetic_batch(shape, classes, settings)
    if mode == "training":
        return compare(title, training_candidates(network, (images, labels), settings, **form), settings)
    return compare(title, inference_candidates(network, images, settings, **form), settings)


def _refuse_with_table1(own: Mapping[str, Any]) -> None:
    """Refuse options that the paper's table leaves no room for."""
    if odd := [name for name, given in own.items() if given]:
        raise ConfigError(f"{odd[0]} has no meaning with --table1, which is the paper's table; leave it out")


def _bench_table1(model: str | None, batch: int, settings: Settings, output: Path | None, *, as_json: bool) -> None:
    """Measure the paper's Table 1, print it, and keep it where asked for."""
    from stripefold_lab.bench.table1 import COLUMNS, NETWORK, measure_table1, save, table
    from stripefold_lab.cli.output import print_json, print_line, print_table, result_files

    reports = measure_table1(settings, batch=batch, model=model or NETWORK)
    if output is not None:
        with result_files([output]):
            save(reports, output)
    if as_json:
        print_json({"reports": [report.to_dict() for report in reports]})
    for report in () if as_json else reports:
        where = ", ".join(f"{name} {value}" for name, value in report.environment.items())
        caption = f"change: of images/s against the network of the same round; the copy shows the noise. {where}"
        print_table(report.title, COLUMNS, table(report), caption=caption)
    if output is not None:
        print_line(f"written: {output}", aside=as_json)


def _batches(text: str) -> list[int]:
    """Batch sizes as they are given on the command line: one, or several with commas between."""
    words = text.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise ConfigError(f"--batch {text!r}: give numbers from 1 on, with commas between")
    return [int(word) for word in words]


def print_report(report: Report) -> None:
    """Print a report as a table with what it was measured on."""
    from stripefold_lab.bench.report import COLUMNS
    from stripefold_lab.cli.output import print_table

    where = ", ".join(f"{name} {value}" for name, value in report.environment.items())
    # The last column, the limits, belongs to the published claims.
    print_table(report.title, COLUMNS[:-1], [row[:-1] for row in report.table()], caption=where)
