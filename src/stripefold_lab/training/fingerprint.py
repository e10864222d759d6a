"""What tells one data set from another: its classes, how many images there are, which, in what order, how large.

A network knows classes by their number and a resumed run knows images by theirs. So a run writes the fingerprint of its
data into its files, and whatever goes on from these compares it with the data that lies there by then.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from stripefold_lab.training.images import FileImages

if TYPE_CHECKING:
    from stripefold_lab.training.data import Data

DATA = "data"
"""Under which name a run's files hold the fingerprint."""
CLASSES = "classes"
HALVES = {"train": "training", "test": "test"}
PARTS = {
    "images": "the number of {} images",
    "order": "the fingerprint of the {} images and their order",
    "files": "the fingerprint of the sizes and contents of the {} images' files",
}
READ = 1000
"""So many files of each half are read, at even distances; of the others, the sizes have to do."""
_PIECE = 1000


def describe(data: Data, *, whole: bool = True) -> dict[str, Any]:
    """What a run's files say about its data; plain values.

    Classes, channels and size, and of all images, before any limit, the fingerprint ``{"train": {"images": count,
    "order": digest, "files": digest}, "test": likewise}``. ``order`` is of the names of the files and of what is known
    about each (class, boxes), ``files`` of how many bytes each has, and of the bytes of up to 1000 of them; of images
    held in memory the bytes themselves are part of ``order``. Where the data lies is part of nothing.

    Args:
        data: As ``load_data`` gives it.
        whole: Whether the images are looked at, and not only the classes.
    """
    spec = data.spec
    about = {CLASSES: list(spec.classes), "channels": spec.channels, "image_size": spec.size}
    if not (whole and data.whole):
        return about
    return {**about, DATA: {half: _half(images, data.root) for half, images in zip(HALVES, data.whole, strict=True)}}


def differing_data(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing in which two data sets differ, with both values; None where nothing does.

    Args:
        was: What a file says about the data it comes from; one of an older version knows the classes only.
        now: What ``describe`` says about the data that lies there.
    """
    found = _differing_class(list(was.get(CLASSES) or ()), now[CLASSES])
    before, after = was.get(DATA), now.get(DATA)
    if found is not None or not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return found
    for half, word in HALVES.items():
        for part, words in PARTS.items():
            told = before.get(half)
            old = told.get(part) if isinstance(told, Mapping) else None
            if old != after[half][part]:
                return f"{words.format(word)} was {old} and is now {after[half][part]}"
    return None


def _differing_class(was: Sequence[str], now: Sequence[str]) -> str | None:
    if len(was) != len(now):
        return f"it was trained on {len(was)} classes, and the data has {len(now)}"
    for number, (old, new) in enumerate(zip(was, now, strict=True)):
        if old != new:
            return f"class {number} was {old!r} and is now {new!r} in the data"
    return None


def _half(images: Any, root: str) -> dict[str, Any]:
    order, paths = hashlib.blake2b(digest_size=8), []

    def plain(value: Any) -> Any:
        """What JSON does not know, as what it knows."""
        if isinstance(value, Path):
            paths.append(value)
            return str(value).removeprefix(root)
        return _plain(value)

    encode = json.JSONEncoder(default=plain).encode
    for piece in _pieces(images):
        order.update(encode(piece).encode())
    return {"images": len(images), "order": order.hexdigest(), "files": _files(paths)}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (Tensor, np.ndarray)):
        array = np.ascontiguousarray(value.numpy() if isinstance(value, Tensor) else value)
        return [str(array.dtype), list(array.shape), hashlib.blake2b(array.data, digest_size=8).hexdigest()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return list(_fields(value))
    return type(value).__qualname__  # a repr may name an address of this process


def _pieces(value: Any) -> Iterator[Any]:
    """A value in pieces that JSON takes at once: annotations of a large data set are hundreds of megabytes of text."""
    if isinstance(value, FileImages):
        yield from _pieces([(Path(path), label) for path, label in value.samples])
    elif isinstance(value, (list, tuple)):
        yield from (value[start : start + _PIECE] for start in range(0, len(value), _PIECE))
    elif isinstance(value, Mapping):
        yield from _pieces(list(value.items()))
    elif dataclasses.is_dataclass(value):
        for name, content in _fields(value):
            yield name
            yield from _pieces(content)
    else:
        yield value


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))


def _files(paths: Sequence[Path]) -> str:
    """Of the sizes of all files and the contents of some; what cannot be read is said by who reads it for its image."""
    found = hashlib.blake2b(digest_size=8)
    every = max(1, -(-len(paths) // READ))
    for number, path in enumerate(paths):
        try:
            found.update(f"{path.stat().st_size},".encode())
            if number % every == 0 and path.is_file():  # reading from a pipe may never end
                found.update(path.read_bytes())
        except OSError:
            found.update(b"none,")
    return found.hexdigest()
