"""Folders that results are written into: a file that was not written by stripefold, or was changed since, stays.

What was written is listed in ``.stripefold.json`` beside it, each file with its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stripefold.atomic import write_text
from stripefold.errors import StripefoldError

LIST = ".stripefold.json"
_LARGEST_LIST = 64 * 2**20


@contextmanager
def own_files(folder: Path, names: Iterable[str], error: type[StripefoldError]) -> Iterator[None]:
    """Around the writing of some files of a folder, which exists: none of them may be another's.

    A process that is killed in between leaves its files listed as begun, so that the next one may replace them.

    Args:
        folder: Where they go.
        names: Of the files, relative to it.
        error: What to raise.

    Raises:
        StripefoldError: ``error``: one of them is there and was not written here, or was changed since.
        OSError: The list cannot be written.
    """
    written = list(names)
    check_own_files(folder, written, error)
    before = listed_files(folder)
    _write_list(folder, before | dict.fromkeys(written, ""))
    yield
    _write_list(folder, before | {name: _digest(folder / name) for name in written if (folder / name).is_file()})


def check_own_files(folder: Path, names: Iterable[str], error: type[StripefoldError]) -> None:
    """Refuse to write over what was not written here; commands that take minutes call it before the work.

    Args:
        folder: Where the files are to go; need not exist.
        names: Of the files, relative to it.
        error: What to raise.

    Raises:
        StripefoldError: ``error``: one of them is there and was not written here, or was changed since.
    """
    known = listed_files(folder)
    if not known and os.path.lexists(folder / LIST):
        raise error(f"{folder / LIST} is not stripefold's list of what it wrote there; choose another folder")
    for name in names:
        path = folder / name
        if os.path.lexists(path) and not _is_own(path, known.get(name)):
            why = "was not written by stripefold" if name not in known else "was changed since stripefold wrote it"
            raise error(f"{path} {why} and would be overwritten: choose another folder, or move it away")


def listed_files(folder: Path) -> dict[str, str]:
    """What stripefold wrote into a folder: name -> SHA-256, "" where the writing was not finished.

    Args:
        folder: Any; nothing is listed where there is no list that can be read.
    """
    path = folder / LIST
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_LIST:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        return {}
    return files


def _is_own(path: Path, digest: str | None) -> bool:
    if digest is None or path.is_symlink() or not path.is_file():
        return False
    return not digest or digest == _digest(path)


def _write_list(folder: Path, files: Mapping[str, str]) -> None:
    here = {name: digest for name, digest in sorted(files.items()) if not digest or (folder / name).is_file()}
    write_text(folder / LIST, json.dumps({"files": here}, indent=1) + "\n")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
