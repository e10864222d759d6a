"""`stripefold bench --deploy`: the table, the file and the picture of the deployed forms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stripefold_lab.cli.output import print_json, print_line, print_table, result_files

if TYPE_CHECKING:
    from torch import nn

    from stripefold_lab.bench import Report, Settings


def bench_deploy(
    name: str,
    model: nn.Module,
    shapes: Sequence[Sequence[int]],
    settings: Settings,
    form: Mapping[str, Any],
    *,
    output: Path | None,
    as_json: bool = False,
) -> None:
    """Measure at every batch size, print one table, and keep JSON and a picture where asked for.

    Args:
        name: The model's.
        model: The backbone.
        shapes: Of the images, (N, C, H, W), one per batch size.
        settings: How it is measured.
        form: Options of `measure_deploy`.
        output: The JSON file; the picture lies beside it.
        as_json: Whether JSON is printed in place of the table.
    """
    from stripefold_lab.bench.deploy import measure_deploy

    reports = [measure_deploy(f"{name}, deployed", model, shape, settings, **form) for shape in shapes]
    said = [] if output is None else _write(reports, output)
    if as_json:
        print_json({"reports": [report.to_dict() for report in reports]})
    else:
        print_deploy(reports)
    for line in said:
        print_line(line, aside=as_json)


def print_deploy(reports: Sequence[Report]) -> None:
    """Print the forms with their throughput, and what was skipped with the reason."""
    from stripefold_lab.bench.deploy import table

    columns, rows = table(reports)
    where = ", ".join(f"{name} {value}" for name, value in reports[0].environment.items())
    caption = f"speed-up: over the first row, within a round; step: over the step before. {where}"
    print_table(reports[0].title, columns, rows, caption=caption)
    for name, reason in reports[0].settings.get("skipped", {}).items():
        print_line(f"skipped: {name}: {reason}")


def _write(reports: Sequence[Report], output: Path) -> list[str]:
    """Write JSON and picture; what to say of them."""
    from stripefold.atomic import write_text
    from stripefold_lab.bench.chart import draw_deploy

    picture = output.with_suffix(".png")
    with result_files([output, picture]):
        write_text(output, json.dumps({"reports": [report.to_dict() for report in reports]}, indent=2) + "\n")
        try:
            draw_deploy(reports, picture)
        except ModuleNotFoundError as error:
            return [f"written: {output}", f"no picture: {error.name} is not installed: pip install 'stripefold[plot]'"]
    return [f"written: {output}", f"written: {picture}"]
