"""Restores class attributes and module globals after a float64 run; copies of a model share them.

A cache of grids on a class, a list of a hook's at module level, a function under ``lru_cache``: an ordinary run leaves
ordinary tensors there, which is what such a place is for. A run in another type than the user's must leave none: what
has come there meanwhile and holds float64 tensors is taken out again. Everything else stays as it is by then, because
other threads use these places as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.modules.mentions import code_names, functions_in, is_filled
from stripefold.modules.modules import is_helper

_WIDE = (torch.float64, torch.complex128)
# An object that answers to every name (a lazy proxy of a library) is no cache, and is not called.
_LRU_CACHE = type(lru_cache(len))
_DEPTH = 4
"""How deep containers and helper objects are looked into, and helper functions are followed."""


@contextmanager
def shared_state_kept(model: nn.Module) -> Iterator[None]:
    """Inside, a model may run in float64; what that leaves in shared places is taken out again."""
    places = _Places()
    for function in _functions(model):
        places.add_function(function, _DEPTH)
    try:
        yield
    finally:
        places.restore()


def _functions(model: nn.Module) -> Iterator[FunctionType]:
    """The functions of a model's classes, those set on its modules, and its hooks."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    holders = [value for module in model.modules() for value in vars(module).values() if is_helper(value)]
    kinds |= {kind for holder in holders for kind in type(holder).__mro__}
    for kind in kinds:
        if not kind.__module__.startswith(("torch.", "builtins")):
            for value in vars(kind).values():
                yield from functions_in(value)
    for module in model.modules():
        for key, value in vars(module).items():
            for each in value.values() if key.endswith("_hooks") and isinstance(value, dict) else (value,):
                yield from functions_in(each)


class _Places:
    """Shared places as they were, and how to put them back."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._namespaces: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._classes: list[tuple[type, dict[str, Any]]] = []
        self._cached: list[tuple[Any, int]] = []

    def add_function(self, function: FunctionType, depth: int) -> None:
        """Note what a function reaches: globals that it names, its defaults, its closure, helpers that it calls."""
        own = str(function.__module__).startswith("stripefold.")  # what records the run is wanted
        if own or id(function) in self._seen or depth == 0:
            return
        self._seen.add(id(function))
        names = set(code_names(function.__code__)) & set(function.__globals__)
        named = {name: function.__globals__[name] for name in names}
        self._namespaces.append((function.__globals__, named))
        cells = [cell.cell_contents for cell in function.__closure__ or () if is_filled(cell)]
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        for value in (*named.values(), *cells, *defaults):
            self._add(value, depth - 1)

    def _add(self, value: Any, depth: int) -> None:
        if id(value) in self._seen or depth == 0 or isinstance(value, (Tensor, nn.Module)):
            return
        if isinstance(value, FunctionType):
            self.add_function(value, depth)
            return
        if isinstance(value, (dict, list, set, deque)):
            self._containers.append((value, value.copy()))
            inner = list(value.values()) if isinstance(value, dict) else list(value)
        elif isinstance(value, _LRU_CACHE):
            self._cached.append((value, value.cache_info().currsize))
            inner = list(functions_in(value))
        elif isinstance(value, type):
            inner = self._add_class(value)
        elif is_helper(value):
            self._containers.append((vars(value), dict(vars(value))))
            inner = [*vars(value).values(), type(value)]
        else:
            return
        self._seen.add(id(value))
        for each in inner:
            self._add(each, depth - 1)

    def _add_class(self, kind: type) -> list[Any]:
        if kind.__module__.startswith(("torch.", "builtins", "numpy", "collections", "typing")):
            return []
        self._classes.append((kind, dict(vars(kind))))
        return [value for key, value in vars(kind).items() if not key.startswith("__")]

    def restore(self) -> None:
        """Take out what is new and holds float64 tensors."""
        for namespace, before in self._namespaces:
            namespace.update(_replaced_by_wide(before, namespace))
        for kind, before in self._classes:
            for name, value in _replaced_by_wide(before, vars(kind)).items():
                setattr(kind, name, value)
        for container, before in self._containers:
            _restore_container(container, before)
        for cached, size in self._cached:
            if cached.cache_info().currsize != size:
                cached.cache_clear()


def _replaced_by_wide(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What stood where a value that holds float64 tensors stands now."""
    return {name: old for name, old in before.items() if now.get(name) is not old and _is_wide(now.get(name))}


def _restore_container(container: Any, before: Any) -> None:
    if isinstance(container, dict):
        for key in [key for key, value in container.items() if _is_wide(value)]:
            if key not in before:
                del container[key]
            elif container[key] is not before[key]:
                container[key] = before[key]
        return
    known = {id(value) for value in before}
    new = [value for value in container if id(value) not in known and _is_wide(value)]
    if isinstance(container, set):
        container.difference_update(new)
    elif len(container) == len(before) and new:  # replaced in place
        for index, value in enumerate(container):
            if any(value is each for each in new):
                container[index] = before[index]
    elif new:
        kept = [value for value in container if all(value is not each for each in new)]
        container.clear()
        container.extend(kept)


def _is_wide(value: Any, depth: int = 3) -> bool:
    if isinstance(value, Tensor):
        return value.dtype in _WIDE
    if depth == 0 or isinstance(value, (nn.Module, type, FunctionType)):
        return False
    if isinstance(value, dict):
        return any(_is_wide(each, depth - 1) for each in value.values())
    if isinstance(value, (list, tuple, set, deque)):
        return any(_is_wide(each, depth - 1) for each in value)
    return is_helper(value) and _is_wide(vars(value), depth - 1)
