"""Tensors in nested structures, and what tells one view of a storage from another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

TensorKey = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]


def tensors_in(structure: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, dicts and the like (model outputs included)."""
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, dict):
        for value in structure.values():
            yield from tensors_in(value)
    elif isinstance(structure, (tuple, list, set, frozenset)):
        for value in structure:
            yield from tensors_in(value)
    elif hasattr(structure, "__dataclass_fields__"):
        yield from tensors_in(_attributes(structure))


def tensors_of(output: Any, path: str = "output", above: tuple[Any, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a nested output (tuples, lists, mappings, objects with attributes), with its path.

    Args:
        output: what a model returned.
        path: where it stands.
        above: what holds it: an object that refers back to one of these is not entered again.
    """
    if any(output is each for each in above):
        return
    above = (*above, output)
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from tensors_of(value, f"{path}[{key!r}]", above)
    elif isinstance(output, (list, tuple)):
        for index, value in enumerate(output):
            yield from tensors_of(value, f"{path}[{index}]", above)
    else:
        for key, value in _attributes(output).items():
            yield from tensors_of(value, f"{path}.{key}", above)


def _attributes(holder: Any) -> dict[str, Any]:
    """What an object has as attributes of its own, in slots as well."""
    slots = [name for kind in type(holder).__mro__ for name in _listed(vars(kind).get("__slots__", ()))]
    found = {name: getattr(holder, name) for name in slots if not name.startswith("__") and hasattr(holder, name)}
    return {**found, **getattr(holder, "__dict__", {})}


def _listed(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def storage_of(tensor: Tensor) -> int:
    """Address of a tensor's storage; of the tensor itself where it has none (sparse layouts)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return id(tensor)


def key_of(tensor: Tensor) -> TensorKey:
    """What tells two tensors apart: storage, offset, shape, strides, type."""
    if tensor.layout is not torch.strided:
        return (id(tensor), 0, tuple(tensor.shape), (), tensor.dtype)
    return (storage_of(tensor), int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)


def input_changed_by_hook(given: tuple[TensorKey, ...], arguments: Any, written: Iterable[Tensor]) -> bool:
    """Whether the tensors among some arguments are others than those given, or were written to."""
    arrived = tuple(map(key_of, tensors_in(arguments)))
    return arrived != given or bool({key[0] for key in arrived} & set(map(storage_of, written)))


def unbroadcast_numel(tensor: Tensor) -> int:
    """The number of distinct elements: dimensions of stride 0 (made by ``expand``) count once."""
    if tensor.layout is not torch.strided:
        return tensor.numel()
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count


def overlapping(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one storage share an element."""
    return overlap(key_of(first), key_of(second))


def count_of(key: TensorKey) -> int:
    """How many elements a view has, those that a broadcast repeats once."""
    count = 1
    for size, stride in zip(key[2], key[3], strict=False):
        count *= size if stride else 1
    return count


def overlap(first: TensorKey, second: TensorKey) -> bool:
    """Whether two views of one storage share an element; certain for slices of one layout, else by address range."""
    if first[3] == second[3] and first[3]:
        return all(_meet(a, b) for a, b in zip(_box(first), _box(second), strict=True))
    return _meet(_range(first), _range(second))


def _meet(first: tuple[int, int], second: tuple[int, int]) -> bool:
    return first[0] < second[1] and second[0] < first[1]


def _range(key: TensorKey) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(key[2], key[3], strict=False))
    return key[1], key[1] + last + 1


def _box(key: TensorKey) -> list[tuple[int, int]]:
    """Per dimension the interval of coordinates, in the common frame that equal strides span."""
    rest, box = key[1], {}
    for dim in sorted(range(len(key[3])), key=lambda d: -key[3][d]):
        stride = key[3][dim]
        start, rest = divmod(rest, stride) if stride else (0, rest)
        box[dim] = (start, start + key[2][dim])
    return [box[dim] for dim in range(len(key[3]))]
