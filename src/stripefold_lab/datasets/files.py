"""Opens files for the dataset readers, with errors that say what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stripefold import documents
from stripefold.documents import DocumentError, read_text, shown
from stripefold.errors import DataError

ANNOTATIONS_LIMIT = 4096 * documents.MIB
"""LVIS, the largest of COCO's kind that is widely used, has 1.2 GiB."""


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except DocumentError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: If it cannot be read or is no JSON.
    """
    try:
        return documents.read_json(path, limit=ANNOTATIONS_LIMIT)
    except DocumentError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def need_folder(root: Path, *names: str, form: str) -> Path:
    """The first of some folders that is there.

    Args:
        root: Where to look.
        names: Their names.
        form: What is being read, for the message.

    Raises:
        DataError: If none is; says what is there instead.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    found = ", ".join(sorted(entry.name for entry in root.iterdir())[:6]) if root.is_dir() else "no such folder"
    raise DataError(f"{form} in {root} needs the folder {' or '.join(names)}; found: {found or 'nothing'}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the system has them
        return False


def need_files(folder: Path, names: Sequence[str], *, listed: Path) -> tuple[Path, ...]:
    """The files of a list, all of which are there and inside of their folder.

    Args:
        folder: Where they are.
        names: Their names, relative to it.
        listed: Who lists them, for the message.

    Raises:
        DataError: If one is not there, or leads out of the folder.
    """
    paths, missing = [], []
    for name in names:
        path = folder / name
        if not name or "\0" in name or Path(name).is_absolute() or ".." in path.parts:
            raise DataError(f"{listed} lists {shown(name)}; file names must be relative to {folder}, and stay in it")
        paths.append(path)
        if not _is_file(path):
            missing.append(name)
    if missing:
        raise DataError(
            f"{listed} lists {shown(missing[0])}, which is not in {folder} ({len(missing)} of {len(names)} are missing)"
        )
    return tuple(paths)
