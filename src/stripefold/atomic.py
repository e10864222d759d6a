"""Files appear whole or not at all."""

from __future__ import annotations

import importlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

fcntl: Any = None
with suppress(ImportError):  # Windows has none: what a killed process left is not told there from what is being written
    fcntl = importlib.import_module("fcntl")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder, moved onto ``path`` when the block ends without an error.

    A process that is killed in the block leaves its temporary file; the next one that writes ``path`` takes it away.

    Raises:
        OSError: the folder does not exist, the disk is full ...; ``path`` is then what it was before.
    """
    target = Path(path)
    _remove_leftovers(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    with _created(temporary):
        mode = _mode(target if target.exists() else temporary)
        try:
            yield temporary
            _make_durable(temporary)
            # A finished file has the mode of what it replaces; a writer may have put one of another mode in its place.
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


@contextmanager
def _created(path: Path) -> Iterator[None]:
    """A new file, held by a lock that the kernel lets go of when this process ends, however that happens."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)  # the usual mode, which mkstemp does not give
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Take away temporary files of ``target`` that nobody writes any more."""
    if fcntl is None:
        return
    name = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{8}\.part")
    with suppress(OSError):  # a folder that cannot be listed or written: the write itself will say so
        for entry in os.scandir(target.parent):
            if name.fullmatch(entry.name) and _is_abandoned(entry.path):
                os.unlink(entry.path)


def _is_abandoned(path: str) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the lock of an open file could be had."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or on a file system without locks, where every file counts as held
        return False
    return True


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
