"""Files appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder, moved onto ``path`` when the block ends without an error.

    Raises:
        OSError: the folder does not exist, the disk is full ...; ``path`` is then what it was before.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    temporary.touch(exist_ok=False)  # with the usual mode, which mkstemp does not give
    mode = _mode(target if target.exists() else temporary)
    try:
        yield temporary
        _make_durable(temporary)
        # A finished file has the mode of what it replaces; a writer may have put a file of another mode in its place.
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    _make_durable(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _make_durable(path: Path) -> None:
    """Flush a file, or a folder's entry of it, to the disk; folders cannot be opened on every system."""
    with suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
