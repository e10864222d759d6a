"""The folder of a bake's report: its page, `bake.json` and `bake.csv`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stripefold.errors import printable
from stripefold_lab.cli.output import make_folders, print_json, print_line


def make_bake_folders(report: Path | None, output: Path | None) -> None:
    """Make the folders of what is to be written, before the work.

    Args:
        report: The folder of the report.
        output: The file of the network.

    Raises:
        ConfigError: One cannot be made.
        ObserveError: The report's holds a file of another origin where one is to be written.
        ModuleNotFoundError: What draws the page is not installed.
    """
    make_folders(report, output)
    if report is not None:
        from stripefold.html_report.write import BAKE, check_report_folder

        check_report_folder(report, BAKE)


def save_bake_report(made: Any, folder: Path, source: str) -> str:
    """Write the report; what to say of it.

    Args:
        made: The report, of a network in PyTorch or in ONNX.
        folder: Where to.
        source: What was baked, for the page's heading.
    """
    from stripefold.html_report.write import write_report

    return f"written: {write_report(made, folder, title=f'Baked: {printable(source)}')}"


def print_made(made: Any, before: Iterable[object], after: Iterable[object], as_json: bool) -> None:
    """Print the report between lines; as JSON the lines go to standard error.

    Args:
        made: The report, of a network in PyTorch or in ONNX.
        before: Lines.
        after: Likewise.
        as_json: Whether a program reads it.
    """
    for line in before:
        print_line(line, aside=as_json)
    print_json(made.to_dict()) if as_json else print_line(made)
    for line in after:
        print_line(line, aside=as_json)
