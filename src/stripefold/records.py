"""Plain values from a file as a dataclass: every field is there, is of its type and finite, and nothing else is."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from stripefold.documents import DocumentError, shown

Record = TypeVar("Record")
_LARGEST = 2**63
"""Whole numbers beyond are no counts of anything; torch could not hold them."""
_WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


def record(cls: type[Record], values: Any, where: str = "it") -> Record:
    """The dataclass whose fields a mapping holds.

    Args:
        cls: A dataclass; numbers, texts, ``Literal``, ``None``, tuples, lists, mappings and other dataclasses are
            checked, every other type by ``isinstance``.
        values: What the file holds.
        where: What it is called in messages.

    Returns:
        The dataclass; ``values`` itself where it is one already.

    Raises:
        DocumentError: Naming the field and what was found.

    >>> from dataclasses import make_dataclass
    >>> record(make_dataclass("Point", [("x", float)]), {"x": 1})
    Point(x=1.0)
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise DocumentError(f"{where} is {shown(values)}; it must be a mapping")
    hints = get_type_hints(cls)
    specs = fields(cls)  # type: ignore[arg-type]
    if unknown := [key for key in values if key not in {spec.name for spec in specs}]:
        raise DocumentError(f"{where} has an unknown entry {shown(unknown[0])}: a newer version may have written it")
    given: dict[str, Any] = {}
    for spec in specs:
        if spec.name in values:
            given[spec.name] = checked(hints[spec.name], values[spec.name], f"{spec.name} of {where}")
        else:
            raise DocumentError(f"{where} lacks {spec.name}")
    return cls(**given)


def checked(kind: Any, value: Any, where: str) -> Any:
    """A value of a type: lists become tuples and whole numbers floats where that is what is asked for.

    Args:
        kind: The type, as ``get_type_hints`` gives it.
        value: What the file holds.
        where: What it is called in messages.

    Raises:
        DocumentError: The value is of another type.
    """
    if kind is Any:
        return value
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind), value, where)
    if origin is Literal:
        return _need(value in get_args(kind), value, where, " or ".join(map(repr, get_args(kind))))
    if origin in (tuple, list):
        return _sequence(kind, value, where)
    if origin in (dict, Mapping):
        _need(isinstance(value, Mapping) and all(isinstance(key, str) for key in value), value, where, "a mapping")
        return {key: checked(get_args(kind)[1], inner, f"{shown(key)} of {where}") for key, inner in value.items()}
    if is_dataclass(kind):
        return record(kind, value, where)  # type: ignore[arg-type]
    if kind in (int, float):
        return _number(kind, value, where)
    return _need(isinstance(value, kind), value, where, _WORDS.get(kind, f"of type {kind.__name__}"))


def _need(fits: bool, value: Any, where: str, wanted: str) -> Any:
    if not fits:
        raise DocumentError(f"{where} is {shown(value)}; it must be {wanted}")
    return value


def _number(kind: type, value: Any, where: str) -> Any:
    fits = isinstance(value, (int, kind)) and not isinstance(value, bool)
    fits = fits and (abs(value) < _LARGEST if isinstance(value, int) else math.isfinite(value))
    return kind(_need(fits, value, where, _WORDS[kind]))


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    rest = [kind for kind in kinds if kind is not type(None)]
    for kind in rest[:-1]:
        try:
            return checked(kind, value, where)
        except DocumentError:
            continue
    return checked(rest[-1], value, where)


def _sequence(kind: Any, value: Any, where: str) -> Any:
    wanted, origin = get_args(kind), get_origin(kind)
    _need(isinstance(value, (tuple, list)), value, where, "a list")
    each = wanted[:1] * len(value) if origin is list or wanted[-1] is Ellipsis else wanted
    _need(len(value) == len(each), value, where, f"a list of {len(each)}")
    return origin(checked(one, item, f"entry {n} of {where}") for n, (one, item) in enumerate(zip(each, value)))  # noqa: B905
