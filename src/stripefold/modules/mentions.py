"""Does the code of a module mention one of its attributes? A layer that no code mentions is called by nobody."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

# Ways to reach an attribute without naming it.
ANY = frozenset(
    [
        "getattr",
        "_modules",
        "children",
        "named_children",
        "modules",
        "named_modules",
        "get_submodule",
        "__getattr__",
        "__dict__",
        "vars",
        "eval",
        "exec",
        "ModuleList",
        "ModuleDict",
    ]
)
_BUILDING = ("__init__", "__repr__")
_DEPTH = 4
"""How far functions that are called by name are followed: helpers of helpers."""


def may_call(module: nn.Module, attribute: str, child: nn.Module) -> bool:
    """Whether the code of a module, or a function that it calls by name, may use an attribute of it.

    Args:
        module: whose methods are looked at, and what is set on it.
        attribute: a name, as the child of a module is called by.
        child: the module itself, which the attribute is or holds.
    """
    if type(module).__module__.startswith("torch.nn."):  # containers go through all that they hold
        return True
    found = set().union(*(code_names(code) for code in codes_of(module)))
    return attribute in found or not ANY.isdisjoint(found) or not found.isdisjoint(aliases(module, child))


def aliases(module: nn.Module, child: nn.Module) -> set[str]:
    """The attributes of a module that are plain lists, dictionaries and the like in which a child of it is."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name for name, value in own.items() if _holds(value, child, _DEPTH)}


def _holds(value: Any, child: nn.Module, depth: int) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if depth == 0 or not isinstance(value, (list, tuple, set, frozenset, deque)):
        return False
    return any(each is child or _holds(each, child, depth - 1) for each in value)


def codes_of(module: nn.Module) -> list[types.CodeType]:
    """The code of a module's methods, and of the functions that they call by name."""
    found: dict[int, types.CodeType] = {}
    for function in _functions_of(module):
        _collect(function, found, _DEPTH)
    return list(found.values())


def _functions_of(module: nn.Module) -> Iterator[types.FunctionType]:
    """The methods that a module has, but for those of ``nn.Module`` and what builds it, and the functions set on it.

    A method that another one replaces counts where that one may go on to it.
    """
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    replaced: list[types.FunctionType] = []
    names_so_far = {*_BUILDING, *own}
    mentioned: set[str] = set()
    for value in own.values():
        for each in functions_in(value):
            mentioned.update(code_names(each.__code__))
            yield each
    for kind in type(module).__mro__:
        if kind is nn.Module:
            break
        for name, value in vars(kind).items():
            if name in _BUILDING:
                continue
            functions = list(functions_in(value))
            mentioned.update(*(code_names(each.__code__) for each in functions))
            if name in names_so_far:
                replaced += functions
            else:
                yield from functions
        names_so_far |= set(vars(kind))
    if mentioned & {"super", *(kind.__name__ for kind in type(module).__mro__)}:
        yield from replaced


def functions_in(value: Any) -> Iterator[types.FunctionType]:
    """The functions behind a method, a property, a partial or a decorated function."""
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, (staticmethod, classmethod, types.MethodType)):
        yield from functions_in(value.__func__)
    elif isinstance(value, property):
        yield from (f for each in (value.fget, value.fset) for f in functions_in(each))
    elif isinstance(value, functools.partial):
        yield from functions_in(value.func)
    elif hasattr(value, "__wrapped__"):
        yield from functions_in(value.__wrapped__)


def _collect(function: types.FunctionType, found: dict[int, types.CodeType], depth: int) -> None:
    if id(function) in found:
        return
    found[id(function)] = function.__code__
    own = set(code_names(function.__code__))
    if depth == 0:
        return
    held = [cell.cell_contents for cell in function.__closure__ or () if is_filled(cell)]
    for value in [*(function.__globals__.get(name) for name in own), *held]:
        if isinstance(value, types.FunctionType) and not str(value.__module__).startswith("torch."):
            _collect(value, found, depth - 1)


def code_names(code: types.CodeType) -> Iterator[str]:
    """Names, and the texts by which an attribute may be asked for, of a function and those inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_names(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant
        elif isinstance(constant, tuple):
            yield from (each for each in constant if isinstance(each, str))


def is_filled(cell: types.CellType) -> bool:
    """Whether a variable of a closure has a value yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
