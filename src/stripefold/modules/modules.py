"""Find and replace modules by their dotted path; shared modules and containers are followed."""

from __future__ import annotations

import pickle
from collections import OrderedDict, deque
from collections.abc import Mapping
from itertools import chain
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from stripefold.modules.tensors import overlapping, storage_of

# Everything nn.Module calls around ``forward``; hooks about state dicts stay with the module whose state it is.
_CALL_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)
NO_COPY = (RuntimeError, TypeError, pickle.PickleError)
"""What ``copy.deepcopy`` raises on modules that hold locks, tensors in the middle of a graph, scripted functions."""
SHAPELESS = (UninitializedParameter, UninitializedBuffer)
CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, ModuleType)
_WRAPPERS = ("DistributedDataParallel", "DataParallel", "OptimizedModule", "FullyShardedDataParallel", "ScriptModule")


def takes_hooks(module: nn.Module) -> bool:
    """Whether hooks can be put on a module; what is scripted takes none."""
    return not isinstance(module, torch.jit.ScriptModule)


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put new modules where old ones are, at every position: a shared module has several.

    Plain attributes, containers and helper objects of a module count too, however deep: a ``forward`` that calls its
    layers from a list would call the old ones for ever.

    Returns:
        The root: ``model`` itself, or its replacement.
    """
    new = {id(old): module for old, module in replacements.items()}
    around: dict[int, set[int]] = {}  # a site keeps its own layer
    for old_id, module in new.items():
        around.setdefault(id(module), set()).add(old_id)
    for parent in list(model.modules()) if new else ():
        wrapped = around.get(id(parent), ())
        mine = {old: module for old, module in new.items() if old not in wrapped} if wrapped else new
        attributes = vars(parent)
        for key, value in attributes.items():
            attributes[key] = _replaced(value, mine)
    return new.get(id(model), model)


def _replaced(value: Any, new: Mapping[int, nn.Module], above: tuple[Any, ...] = ()) -> Any:
    """An attribute with the modules in it replaced; containers (``_modules`` is one) and objects in place.

    Args:
        value: the attribute, or an item of one.
        new: ``id`` of a module -> what takes its place.
        above: what holds it: a list that holds itself is not entered again.
    """
    if isinstance(value, nn.Module):
        return new.get(id(value), value)
    if not (isinstance(value, CONTAINERS) or is_helper(value)) or any(value is each for each in above):
        return value
    above = (*above, value)
    if isinstance(value, (tuple, frozenset)):
        items = [_replaced(item, new, above) for item in value]
        changed = type(value) in (tuple, frozenset) and any(a is not b for a, b in zip(items, value, strict=True))
        return type(value)(items) if changed else value
    if isinstance(value, set):
        for item in [each for each in value if _replaced(each, new, above) is not each]:
            value.remove(item)
            value.add(_replaced(item, new, above))
        return value
    holder = vars(value) if is_helper(value) else value
    for key, item in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
        other = _replaced(item, new, above)
        if other is not item:
            holder[key] = other
    return value


def is_helper(value: Any) -> bool:
    """Whether this is an object of the user's own, which may hold modules: none of torch's, no class, no function."""
    if isinstance(value, (nn.Module, Tensor, type, *CONTAINERS, *_FUNCTIONS)) or not hasattr(value, "__dict__"):
        return False
    return not type(value).__module__.startswith(("torch.", "numpy", "builtins"))


def move_call_hooks(source: nn.Module, target: nn.Module) -> None:
    """Hand the hooks around ``forward`` from one module to another.

    The dictionaries themselves move, because a ``RemovableHandle`` refers to its dictionary: the user's handles
    keep working. Hooks that the target has of its own stay, after those that arrive.
    """
    for attribute in _CALL_HOOKS:
        if attribute not in source.__dict__:
            continue
        arriving, own = source.__dict__[attribute], target.__dict__.get(attribute)
        if attribute == "_is_full_backward_hook":
            target.__dict__[attribute] = own if arriving is None else arriving
            source.__dict__[attribute] = None
        else:
            arriving.update(own or {})
            target.__dict__[attribute] = arriving
            source.__dict__[attribute] = OrderedDict()


def unwrap_name(model: nn.Module) -> str | None:
    """The class name of a wrapper (DDP, compiled ...) that must be removed first, or None.

    The returned text is used in error messages.
    """
    for cls in type(model).__mro__:
        if cls.__name__ in _WRAPPERS:
            return cls.__name__
    return None


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter is spread over processes (FSDP of either kind, tensor parallel)."""
    if wrapped_inside(model, "FullyShardedDataParallel") is not None:
        return True
    return any("DTensor" in type(parameter).__name__ for parameter in model.parameters())


def wrapped_inside(model: nn.Module, wrapper: str) -> str | None:
    """The path of the first module of that wrapper class in a model, or None."""
    return next((name for name, module in model.named_modules() if unwrap_name(module) == wrapper), None)


def forget_compiled(model: nn.Module) -> None:
    """Drop code compiled in place (``model.compile()``): it was compiled for the old structure."""
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            module._compiled_call_impl = None


def tensor_owners(model: nn.Module) -> dict[int, list[str]]:
    """``id(tensor)`` -> the full names of every parameter and buffer that is it, or shares memory with it.

    More than one: tied. Memory, because ``nn.Parameter(other.weight.data)`` is another object on the same numbers.
    """
    places: dict[int, list[tuple[str, Tensor]]] = {}
    for name, module in model.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and not isinstance(tensor, SHAPELESS):
                places.setdefault(storage_of(tensor), []).append((f"{name}.{key}" if name else key, tensor))
    return {
        id(tensor): [path for path, other in held if other is tensor or overlapping(tensor, other)]
        for held in places.values()
        for _, tensor in held
    }


def first_parameter(model: nn.Module) -> torch.Tensor | None:
    """Any floating-point parameter or buffer: tells device and dtype."""
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            return tensor
    return None


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, DDP and DataParallel, which hold it whole; other wrappers are left on."""
    wrapper = unwrap_name(model)
    if wrapper == "OptimizedModule":
        return unwrapped(model._orig_mod)  # type: ignore[arg-type]
    if wrapper in ("DistributedDataParallel", "DataParallel"):
        return unwrapped(model.module)  # type: ignore[arg-type]
    return model


def uninitialized(model: nn.Module) -> str | None:
    """What a lazy module in a model lacks, in words that say what to do, or None."""
    for name, module in model.named_modules():
        if any(isinstance(tensor, SHAPELESS) for tensor in (*module._parameters.values(), *module._buffers.values())):
            return (
                f"{name!r} ({type(module).__name__}) is lazy and has no weights yet: run the model once on an input, "
                "then call this again"
            )
    return None
