"""What every reader does: open a file, and say in words what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stripefold.errors import DataError


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: If it cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
