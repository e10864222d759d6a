"""The folder of a bake's report, which holds `bake.json` and `bake.csv`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stripefold.errors import ConfigError
from stripefold.own_files import check_own_files, own_files
from stripefold_lab.cli.output import make_folders

FILES = ("bake.json", "bake.csv")


def make_bake_folders(report: Path | None, output: Path | None) -> None:
    """Make the folders of what is to be written, before the work.

    Args:
        report: The folder of the report.
        output: The file of the network.

    Raises:
        ConfigError: One cannot be made, or holds a file of another origin where one is to be written.
    """
    make_folders(report, output)
    if report is not None:
        check_own_files(report, FILES, ConfigError)


def save_bake_report(made: Any, folder: Path) -> str:
    """Write the report; what to say of it.

    Args:
        made: The report, of a network in PyTorch or in ONNX.
        folder: Where to.
    """
    with own_files(folder, FILES, ConfigError):
        return f"written: {made.save(folder / FILES[0])}, {made.to_csv(folder / FILES[1])}"
