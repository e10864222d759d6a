"""Tables and lines on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stripefold.errors import ConfigError, printable
from stripefold.own_files import check_own_files, own_files

PIPE_WIDTH = 160


def print_table(title: str, columns: Sequence[str], rows: Iterable[Iterable[object]], *, caption: str = "") -> None:
    """Print a table; the first column is left-aligned, and so is what does not look like a number.

    Args:
        title: Above the table.
        columns: The head.
        rows: Cells, shown with `str`.
        caption: Below the table.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    cells = [[printable(cell) for cell in row] for row in rows]
    title, caption = printable(title), printable(caption)
    table = Table(title=title, caption=caption or None, box=box.SIMPLE_HEAD, title_justify="left")
    for index, column in enumerate(columns):
        numeric = index > 0 and all(row[index][:1].isdigit() or not row[index] for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    # A pipe has no width of its own: never squeeze a table there.
    wide = sys.stdout is None or not sys.stdout.isatty()
    Console(highlight=False, markup=False, width=PIPE_WIDTH if wide else None).print(table)


def print_json(value: object) -> None:
    """Print a value as JSON, for a program to read; paths and records of the library become text.

    Args:
        value: Anything JSON can hold.
    """
    import json

    print_line(json.dumps(value, indent=1, default=str))


def print_report(report: Any, as_json: bool) -> None:
    """Print what a call reported: its own lines, or its fields for a program to read.

    Args:
        report: A record.
        as_json: Whether a program reads it.
    """
    print_json(asdict(report)) if as_json else print_line(report)


def make_folder(folder: Path) -> None:
    """Make the folder of what is to be written; commands that take minutes call it before the work.

    Raises:
        ConfigError: It cannot be made, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError) else error.strerror or error
        raise ConfigError(f"cannot write into {folder}: {reason}; choose another folder") from error


def make_folders(report: Path | None, output: Path | None) -> None:
    """Make the folder of a report, and the one that a file goes into.

    Raises:
        ConfigError: one cannot be made, or is a file.
    """
    for folder in (report, None if output is None else output.parent):
        if folder is not None:
            make_folder(folder)


def check_result_files(paths: Sequence[Path]) -> None:
    """Make the folder of some result files and see that none of them is another's, before the work.

    Args:
        paths: In one folder; may be none.

    Raises:
        ConfigError: The folder cannot be made, or a file of another origin would be overwritten.
    """
    for path in paths:
        make_folder(path.parent)
        check_own_files(path.parent, [path.name], ConfigError)


def result_files(paths: Sequence[Path]) -> AbstractContextManager[None]:
    """Around the writing of some result files, whose folder is there: none of them may be another's.

    Args:
        paths: In one folder.
    """
    return own_files(paths[0].parent, [path.name for path in paths], ConfigError)


def check_weights_file(output: Path, *, overwrite: bool) -> None:
    """Refuse, before the work, a name under which no command would read the weights, and a file that is there.

    Raises:
        ConfigError: The name does not end in .safetensors, is a folder's, or is taken.
    """
    if output.suffix != ".safetensors":
        raise ConfigError(f"cannot write {output}: what is written is a safetensors file, end its name in .safetensors")
    if output.is_dir():
        raise ConfigError(f"cannot write {output}: a folder of this name is in the way; choose another --out")
    if output.exists() and not overwrite:
        raise ConfigError(f"{output} exists; choose another --out, or say --overwrite")


def print_line(text: object = "", *, aside: bool = False) -> None:
    """Print text, line by line, without what a terminal would obey.

    Args:
        text: One line or several.
        aside: Whether standard output is for a program to read; then the text goes to standard error.
    """
    print(printable(text), file=sys.stderr if aside else sys.stdout)
