"""Which layers' tensors does the code of a module's forward name, beside calling the layers?

A run shows the tensors that were read or written in it. Code that does so on another path only (from the second call
on, for another argument) shows in the code alone: ``self.conv.weight.clamp_(...)``.
"""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Iterator

from torch import nn

from stripefold.modules.mentions import code_names, functions_in, may_call
from stripefold.modules.modules import takes_hooks
from stripefold.modules.stand_in import StandIn

_LOADS = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_NAMES = _LOADS | {"STORE_ATTR", "DELETE_ATTR"}
# What says nothing of a tensor's values.
_METADATA = frozenset(
    [
        "device",
        "dim",
        "dtype",
        "element_size",
        "is_cpu",
        "is_cuda",
        "is_floating_point",
        "is_meta",
        "layout",
        "ndim",
        "numel",
        "requires_grad",
        "shape",
        "size",
        "stride",
        "type_as",
    ]
)
_DEPTH = 6


NamedPlaces = frozenset[tuple[tuple[str, ...] | None, str]]
"""Attributes that code takes, each with the way there from ``self``; None where that is not written out."""


def tensors_named(module: nn.Module, known: dict[type, NamedPlaces]) -> Iterator[tuple[nn.Module, str]]:
    """The modules below a module whose tensors its forward, or what that calls by name, may read or write directly.

    Args:
        module: whose code is looked at. Questions that say nothing of the values do not count (dtype, ``is None``).
        known: what the code of a class names; kept by the caller for as long as no class can change.
    """
    kind = type(module)
    if kind.__module__.startswith(("torch.", "stripefold.")) or not takes_hooks(module) or not module._modules:
        return
    if any(isinstance(value, types.FunctionType) for value in vars(module).values()):
        named = _names_of(module)
    else:
        named = known[kind] if kind in known else known.setdefault(kind, _names_of(module))
    if not named:
        return
    inside = [(path, each) for path, each in module.named_modules() if path and takes_hooks(each)]
    held = {name for _, each in inside for name in _tensors_of(each)}
    for chain, name in named:
        if name not in held:
            continue
        for path, below in inside:
            if name not in _tensors_of(below):
                continue
            parts = tuple(path.split("."))
            if parts == chain or (chain is None and may_call(module, parts[0], module._modules[parts[0]] or below)):
                yield below, name


def _tensors_of(module: nn.Module) -> frozenset[str]:
    """The attributes of a module that are tensors, or may be; what stands in for a layer offers that layer's."""
    layer = module.stands_for if isinstance(module, StandIn) else None
    return frozenset(key for each in (module, layer or module) for key in (*each._parameters, *each._buffers))


def _names_of(module: nn.Module) -> NamedPlaces:
    return frozenset(each for code, own in _reachable(module) for each in _named(code, own))


def _reachable(module: nn.Module) -> list[tuple[types.CodeType, str | None]]:
    """The code that a call of the module may run of its own, methods with the name of their ``self``."""
    found: dict[int, tuple[types.CodeType, str | None]] = {}
    waiting = [(each, True, 0) for each in functions_in(getattr(type(module), "forward", None))]
    waiting += [(each, False, 0) for each in functions_in(vars(module).get("forward"))]
    while waiting:
        function, is_method, depth = waiting.pop()
        code = function.__code__
        if id(code) in found or _of_torch(function):
            continue
        found[id(code)] = (code, code.co_varnames[0] if is_method and code.co_argcount else None)
        if depth < _DEPTH:
            waiting += [(*each, depth + 1) for each in _called_by(module, function)]
    return list(found.values())


def _called_by(module: nn.Module, function: types.FunctionType) -> Iterator[tuple[types.FunctionType, bool]]:
    """The functions that a function names: methods of the module, or of its own globals."""
    for name in set(code_names(function.__code__)):
        method, other = inspect.getattr_static(module, name, None), function.__globals__.get(name)
        for value, is_method in ((method, not isinstance(method, staticmethod)), (other, False)):
            if not isinstance(value, (nn.Module, type)):
                yield from ((each, is_method) for each in functions_in(value))


def _of_torch(function: types.FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] == "torch"


def _named(code: types.CodeType, own: str | None) -> Iterator[tuple[tuple[str, ...] | None, str]]:
    """Attributes that a function takes of something, with the way there from ``self`` where it is written out."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _named(constant, own)
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "NOP")]
    asks = "getattr" in code.co_names or "setattr" in code.co_names
    for k, step in enumerate(steps):
        if step.opname in _NAMES and not _says_nothing(steps, k):
            chain = _chain(steps, k, own)
            if chain != ():  # an attribute of the module's own
                yield chain, step.argval
        elif asks and step.opname == "LOAD_CONST" and isinstance(step.argval, str):
            yield None, step.argval


def _says_nothing(steps: list[dis.Instruction], k: int) -> bool:
    after = steps[k + 1] if k + 1 < len(steps) else None
    if after is None or steps[k].opname not in _LOADS:
        return False
    is_none = "NONE" in after.opname or (after.opname == "LOAD_CONST" and after.argval is None and _is_op(steps, k + 2))
    return is_none or (after.opname in _LOADS and after.argval in _METADATA)


def _is_op(steps: list[dis.Instruction], k: int) -> bool:
    return k < len(steps) and steps[k].opname == "IS_OP"


def _chain(steps: list[dis.Instruction], k: int, own: str | None) -> tuple[str, ...] | None:
    """The attributes from ``self`` to what a step takes an attribute of; None where they are not all written out."""
    names: list[str] = []
    for step in reversed(steps[:k]):
        if step.opname in _LOADS:
            names.insert(0, step.argval)
        else:
            last = step.argval[-1] if isinstance(step.argval, tuple) and step.argval else step.argval
            return tuple(names) if step.opname.startswith("LOAD_") and own and last == own else None
    return None
