"""The data of an ONNX network: batches of named arrays, with labels where there are some."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import onnx_ir as ir

from stripefold.errors import DataError
from stripefold.inputs import check_regular
from stripefold.onnx.images import Images
from stripefold.onnx.session import Array

LABELS = "labels"
_BATCH = 16


@dataclass(frozen=True)
class Input:
    """What a network says of one input: None for a size that is open."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None

    def is_open(self, axis: int) -> bool:
        """Whether the network takes any size along an axis."""
        return self.shape is None or (axis < len(self.shape) and self.shape[axis] is None)

    @classmethod
    def of(cls, value: ir.Value) -> Input:
        """Read it from the graph.

        Raises:
            DataError: it is no tensor of numbers.
        """
        if value.dtype is None or value.dtype == ir.DataType.STRING:
            raise DataError(f"the input {value.name!r} is no tensor of numbers: such networks are not observed")
        sizes = (
            None if value.shape is None else tuple(s if isinstance(s, int) and s >= 0 else None for s in value.shape)
        )
        return cls(value.name or "", value.dtype.numpy(), sizes)


@dataclass(frozen=True)
class FeedBatch:
    """One batch.

    Attributes:
        feed: input name -> array.
        labels: (n,) class numbers, or None.
        size: number of samples.
        number: from 0.
    """

    feed: Mapping[str, Array]
    labels: Array | None
    size: int
    number: int


class FeedBatches:
    """Data that can be read again and again, as inputs of one network.

    Args:
        data: a folder of images or an ``.npz`` file; arrays, ``(arrays, labels)`` pairs or mappings of input names to
            arrays, one batch or an iterable of batches; ``Images``; or a function without arguments that gives such an
            iterable.
        inputs: of the network.
        limit: how many samples at most.
        name: what the caller calls the data, for messages.
        again: whether it is read more than once.

    Raises:
        DataError: data of no known form, or that can be read only once and is read more often.
    """

    def __init__(
        self, data: Any, inputs: Sequence[Input], *, limit: int | None = None, name: str = "data", again: bool = True
    ) -> None:
        if again and isinstance(data, Iterator):
            raise DataError(
                f"{name} is a {type(data).__name__}, which can be read only once, and baking reads it several times: "
                "give list(...) of it, or a function that starts anew"
            )
        self._name, self._inputs, self._limit = name, list(inputs), limit
        self._source = self._opened(data)

    def __iter__(self) -> Iterator[FeedBatch]:
        """The batches.

        Raises:
            DataError: no sample at all, or one that does not fit the inputs.
        """
        seen = 0
        for number, given in enumerate(self._source()):
            batch = self._batch(given, number, None if self._limit is None else self._limit - seen)
            seen += batch.size
            if batch.size:
                yield batch
            if self._limit is not None and seen >= self._limit:
                break
        if not seen:
            raise DataError(f"{self._name} holds no samples: the gates' values are learned from them")

    def first(self) -> FeedBatch:
        """The first batch."""
        return next(iter(self))

    def _opened(self, data: Any) -> Callable[[], Iterable[Any]]:
        if isinstance(data, (str, os.PathLike)):
            data = self._file(Path(data))
        if isinstance(data, Images):
            images = data
            return lambda: images.batches(self._inputs[0].shape, self._inputs[0].dtype)
        if _is_array(data) or isinstance(data, Mapping) or _is_pair(data):
            return lambda: [data]
        if callable(data):
            return lambda: _called(data, self._name)
        if isinstance(data, Iterable):
            return lambda: data
        raise DataError(
            f"{self._name} is {type(data).__name__}: give a folder of images, an .npz file, arrays, or batches of them"
        )

    def _file(self, path: Path) -> Any:
        if path.is_dir():
            return Images(path)
        if path.suffix == ".npz":
            return self._arrays(path)
        reason = "is neither a folder of images nor an .npz file" if path.exists() else "does not exist"
        raise DataError(f"{self._name}: {path} {reason}")

    def _arrays(self, path: Path) -> Callable[[], Iterable[Any]]:
        check_regular(path, DataError)
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, BadZipFile, EOFError) as error:
            raise DataError(f"{self._name}: {path} cannot be read: {error}") from error
        values = [name for name in arrays if name != LABELS]
        names = [each.name for each in self._inputs]
        if len(values) == 1 and len(names) == 1:
            arrays = {names[0] if name == values[0] else name: array for name, array in arrays.items()}
        lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if not lengths or len(set(lengths.values())) != 1:
            raise DataError(f"{self._name}: the arrays in {path} are not of one length: {lengths}")
        count, step = next(iter(lengths.values())), self.batch_size()

        def pieces() -> Iterator[Any]:
            for start in range(0, count, step):
                yield {name: array[start : start + step] for name, array in arrays.items()}

        return pieces

    def batch_size(self) -> int:
        """How many samples go into a batch that is made here: what the network fixes, or a handful."""
        fixed = self._inputs[0].shape[0] if self._inputs[0].shape else None
        return fixed or _BATCH

    def _batch(self, given: Any, number: int, room: int | None) -> FeedBatch:
        where = f"batch {number} of {self._name}"
        labels = None
        if _is_pair(given):
            given, labels = given
        feed = dict(given) if isinstance(given, Mapping) else {self._inputs[0].name: given}
        if LABELS in feed and LABELS not in {each.name for each in self._inputs}:
            labels = feed.pop(LABELS)
        wanted = {each.name: each for each in self._inputs}
        if set(feed) != set(wanted):
            raise DataError(f"{where} gives {sorted(feed)}, and the network takes {sorted(wanted)}")
        arrays = {name: _fitting(_array(value, where), wanted[name], where) for name, value in feed.items()}
        size = len(arrays[self._inputs[0].name])
        if room is not None and size > room:
            fixed = self._inputs[0].shape[0] if self._inputs[0].shape else None
            size = room if fixed is None else size
            arrays = {name: array[:size] for name, array in arrays.items()}
            labels = None if labels is None else labels[:size]
        return FeedBatch(arrays, _labels(labels, size, where), size, number)


def _is_array(data: Any) -> bool:
    return isinstance(data, np.ndarray) or (hasattr(data, "detach") and hasattr(data, "numpy"))


def _is_pair(data: Any) -> bool:
    """(arrays, labels)."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    first, second = data
    return (_is_array(first) or isinstance(first, Mapping)) and _is_array(second) and np.ndim(second) == 1


def _called(function: Callable[[], Any], name: str) -> Iterable[Any]:
    found = function()
    if not isinstance(found, Iterable):
        raise DataError(f"{name} gives {type(found).__name__} when it is called: give batches")
    return [found] if _is_array(found) or isinstance(found, Mapping) or _is_pair(found) else found


def _array(value: Any, where: str) -> Array:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype == object or array.ndim == 0:
        raise DataError(f"{where} is {type(value).__name__}, no array with samples along its first axis")
    return array


def _fitting(array: Array, wanted: Input, where: str) -> Array:
    """The array in the input's type; real numbers may change their precision, nothing else is converted."""
    if array.dtype != wanted.dtype:
        both = all(np.issubdtype(each, np.floating) for each in (array.dtype, wanted.dtype))
        if not both and not (np.issubdtype(array.dtype, np.integer) and np.issubdtype(wanted.dtype, np.integer)):
            raise DataError(f"{where} is {array.dtype} for the input {wanted.name!r} of {wanted.dtype}: convert it")
        array = array.astype(wanted.dtype)
    shape = wanted.shape
    if shape is None:
        return array
    if len(shape) != array.ndim or any(s is not None and s != have for s, have in zip(shape, array.shape, strict=True)):
        said = " x ".join("?" if size is None else str(size) for size in shape)
        raise DataError(f"{where} is {array.shape} for the input {wanted.name!r} of {said}")
    return array


def _labels(labels: Any, size: int, where: str) -> Array | None:
    if labels is None:
        return None
    found = _array(labels, f"the labels of {where}")
    if found.shape != (size,) or not np.issubdtype(found.dtype, np.integer) or (size and found.min() < 0):
        raise DataError(f"the labels of {where} are {found.dtype} {found.shape}: {size} whole numbers from 0 expected")
    return found
