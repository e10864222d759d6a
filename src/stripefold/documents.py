"""Text and JSON that others wrote: bounded in size and depth, every key once. YAML: ``yaml_documents``."""

from __future__ import annotations

import json
import math
import os
import reprlib
import stat
from collections.abc import Hashable, Iterable
from typing import Any

from stripefold.errors import one_line

MIB = 2**20
JSON_LIMIT = 256 * MIB
TEXT_LIMIT = 64 * MIB
DEPTH = 32


class DocumentError(ValueError):
    """What is wrong with a document, in words; who reads it says which file it was, in an error of their own."""


def shown(value: Any) -> str:
    """A value in a message: short, however large or deep it is.

    >>> shown("x" * 100_000) < "y" and len(shown("x" * 100_000)) < 100
    True
    """
    short = reprlib.Repr()
    short.maxstring, short.maxother, short.maxlong, short.maxlevel = 80, 80, 40, 3
    try:
        return one_line(short.repr(value))
    except ValueError:  # a whole number of thousands of digits
        return f"a {type(value).__name__} too large to show"


def read_bytes(path: str | os.PathLike[str], *, limit: int) -> bytes:
    """The content of a file.

    Args:
        path: A regular file: a pipe may never end, a device neither.
        limit: How many bytes it may have.

    Raises:
        DocumentError: If it cannot be read, or is larger.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DocumentError("it is no regular file")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise DocumentError(f"it is larger than {limit // MIB} MiB")
        return content
    except OSError as error:
        raise DocumentError(error.strerror or str(error)) from error
    except DocumentError:
        raise
    except ValueError as error:  # a path with a zero byte
        raise DocumentError(str(error)) from error


def read_text(path: str | os.PathLike[str], *, limit: int = TEXT_LIMIT) -> str:
    """The content of a UTF-8 file; see ``read_bytes``."""
    try:
        return read_bytes(path, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is no UTF-8 text (byte {error.start})") from error


def read_json(path: str | os.PathLike[str], *, limit: int = JSON_LIMIT) -> Any:
    """The content of a JSON file; see ``read_text`` and ``parse_json``."""
    return parse_json(read_text(path, limit=limit))


def parse_json(text: str) -> Any:
    """The value of a JSON text. NaN and Infinity pass, as in Python's own: whoever needs finite numbers checks them.

    Raises:
        DocumentError: If it is no JSON, nested deeper than ``DEPTH``, or has a key twice.

    >>> parse_json('{"epochs": 3}')
    {'epochs': 3}
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise DocumentError(too_deep()) from error
    except DocumentError:
        raise
    except (ValueError, MemoryError) as error:
        raise DocumentError(f"it is no JSON: {error}") from error
    check_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DocumentError(f"the key {shown(first_twice(keys))} stands in it twice; leave one")
    return found


def first_twice(keys: Iterable[Hashable]) -> Hashable:
    """The first key that was there before."""
    seen: set[Hashable] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return None


def check_depth(value: Any) -> None:
    """Refuse plain values nested deeper than ``DEPTH``: copying or printing them would end in Python's own limit.

    Raises:
        DocumentError: They are.
    """
    level = [value]  # level by level, so that the check itself needs no stack
    for _ in range(DEPTH):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list, tuple))
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (dict, list, tuple))
        ]
        if not level:
            return
    raise DocumentError(too_deep())


def finite(value: Any) -> Any:
    """Plain values as a JSON document may hold them: lists for tuples, null for a number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def too_deep() -> str:
    """What is said of a document nested deeper than ``DEPTH``."""
    return f"it is nested deeper than {DEPTH} levels"
