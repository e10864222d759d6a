"""Read batches of whatever form a data loader gives: inputs for the model, and labels where there are any."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.errors import ObserveError
from stripefold.graph.record_run import describe
from stripefold.modules.example import Example, examples_of
from stripefold.modules.tensors import tensors_in

_LABEL_KEYS = ("labels", "label", "targets", "target")
_FORMS = (
    "tensors, (images, labels) pairs or mappings of keyword arguments, as a DataLoader gives them, or one tensor (a "
    "single batch)"
)


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        inputs: A tensor, a tuple of positional or a dict of keyword arguments; a list of images is one of those.
        labels: (N,) class numbers, or None.
        size: N, the number of samples.
        number: Counted from 0.
        targets: What stands in the place of the labels, as it is given: for a loss of the user's.
    """

    inputs: Example
    labels: Tensor | None
    size: int
    number: int
    targets: Any = None

    def first(self, count: int) -> Batch:
        """The first samples only."""
        labels = self.labels[:count] if self.labels is not None else None
        return Batch(_rows(self.inputs, self.size, slice(count)), labels, min(count, self.size), self.number)

    def pair(self) -> Example:
        """Two samples for a trace: with one, a gate could not be told from a constant's shape."""
        pick = slice(2) if self.size > 1 else torch.zeros(2, dtype=torch.long)
        return _rows(self.inputs, self.size, pick)

    def __str__(self) -> str:
        return f"batch {self.number} ({describe(self.inputs)})"


def batches(data: Any, model: nn.Module, *, arguments: int = 1, max_images: int | None = None) -> Iterator[Batch]:
    """Batches for a model from a loader, a list, a generator or one tensor.

    Args:
        data: See ``observe``.
        model: Its signature tells whether a mapping is passed by keyword.
        arguments: How many entries of a tuple are arguments of the model; the next one, if any, holds the labels.
        max_images: Stop after that many samples, in the middle of a batch where need be.

    Raises:
        ObserveError: The data, or one of its batches, is of none of the known forms.
    """
    left = max_images
    for number, item in enumerate(_iterable(data)):
        if left is not None and left <= 0:
            return
        inputs, labels = _split(item, model, arguments, number)
        size = _size(inputs)
        if size == 0:
            continue
        batch = Batch(inputs, _checked_labels(labels, size, number), size, number, labels)
        if left is not None:
            batch, left = (batch if size <= left else batch.first(left)), left - size
        yield batch


def count_arguments(example: Example | None) -> int:
    """How many entries of a tuple of the data are arguments of the model: as many as the (first) example has."""
    first = None if example is None else examples_of(example)[0]
    return len(first) if isinstance(first, tuple) and first else 1


def _size(inputs: Example) -> int:
    """The number of samples."""
    if isinstance(inputs, tuple) and inputs and isinstance(inputs[0], list):  # of images
        return len(inputs[0])
    return next((len(tensor) for tensor in tensors_in(inputs) if tensor.dim()), 0)


def _iterable(data: Any) -> Iterable[Any]:
    if isinstance(data, (Tensor, Mapping)):
        return [data]
    if isinstance(data, torch.utils.data.Dataset) and not isinstance(data, torch.utils.data.IterableDataset):
        raise ObserveError(
            "the data is a Dataset, which gives single samples: observe(model, DataLoader(dataset, batch_size=64))"
        )
    if isinstance(data, (str, bytes, nn.Module)) or not isinstance(data, Iterable):
        raise ObserveError(f"the data is {_a(data)}, which gives no batches: expected {_FORMS}")
    return data


def _split(item: Any, model: nn.Module, arguments: int, number: int) -> tuple[Example, Any]:
    """The model's inputs and the labels of one item."""
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, Mapping):
        return _from_mapping(item, model, number)
    if isinstance(item, (tuple, list)) and item and _is_list_of_images(item[0]) and arguments == 1:
        return (list(item[0]),), item[1] if len(item) > 1 else None
    if isinstance(item, (tuple, list)) and item and all(isinstance(value, Tensor) for value in item[:arguments]):
        if len(item) < arguments:
            raise ObserveError(f"batch {number} has {len(item)} entries, the example {arguments}: give one like it")
        inputs = item[0] if arguments == 1 else tuple(item[:arguments])
        return inputs, item[arguments] if len(item) > arguments else None
    inside = f", holding {_a(item[0])}" if isinstance(item, (tuple, list)) and item else ""
    raise ObserveError(f"batch {number} is {_a(item)}{inside}: expected {_FORMS}")


def _is_list_of_images(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and bool(value) and all(isinstance(image, Tensor) for image in value)


def _from_mapping(item: Mapping[str, Any], model: nn.Module, number: int) -> tuple[Example, Any]:
    labels = next((item[key] for key in _LABEL_KEYS if key in item), None)
    inputs = {key: value for key, value in item.items() if key not in _LABEL_KEYS}
    tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
    if not tensors:
        raise ObserveError(f"batch {number} is a mapping without a tensor (keys {list(item)}): expected {_FORMS}")
    parameters = inspect.signature(model.forward).parameters
    by_keyword = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if by_keyword or all(key in parameters for key in inputs) or len(tensors) > 1:
        return inputs, labels
    return tensors[0], labels  # {"image": x} for forward(x): the key is the data set's, not the model's


def _checked_labels(labels: Any, size: int, number: int) -> Tensor | None:
    """Class numbers, or None for labels of another form; only class-conditional means need them."""
    if labels is None:
        return None
    if isinstance(labels, (list, tuple)) and labels and all(isinstance(label, int) for label in labels):
        labels = torch.tensor(labels)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        return None
    if labels.shape not in ((size,), (size, 1)):
        return None
    return labels.reshape(size).to("cpu", torch.int64)


def _rows(inputs: Any, size: int, pick: slice | Tensor) -> Any:
    """The same samples of every tensor that has as many as the batch."""
    if isinstance(inputs, Tensor):
        if not inputs.dim() or len(inputs) != size:
            return inputs
        return inputs[pick.to(inputs.device) if isinstance(pick, Tensor) else pick]
    if isinstance(inputs, Mapping):
        return {key: _rows(value, size, pick) for key, value in inputs.items()}
    if isinstance(inputs, list):  # of images
        return inputs[pick] if isinstance(pick, slice) else [inputs[i] for i in pick.tolist()]
    if isinstance(inputs, tuple):
        return tuple(_rows(value, size, pick) for value in inputs)
    return inputs


def _a(value: Any) -> str:
    name = type(value).__name__
    length = f" of length {len(value)}" if isinstance(value, Sized) and not isinstance(value, nn.Module) else ""
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}{length}"
