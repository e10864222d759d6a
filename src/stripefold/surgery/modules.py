"""Find and replace modules by their dotted path; shared modules and containers are followed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

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
_WRAPPERS = ("DistributedDataParallel", "DataParallel", "OptimizedModule", "FullyShardedDataParallel", "ScriptModule")


def module_paths(model: nn.Module) -> dict[int, list[str]]:
    """``id(module)`` -> every dotted path it is registered under, the first one first."""
    paths: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(name)
    return paths


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put new modules where old ones are, at every position (a shared module has several).

    Returns:
        The root: ``model`` itself, or its replacement.
    """
    new = {id(old): module for old, module in replacements.items()}
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is not None and id(child) in new and new[id(child)] is not parent:
                _set_child(parent, key, new[id(child)])
    return new.get(id(model), model)


def _set_child(parent: nn.Module, key: str, child: nn.Module) -> None:
    """Replace a child in place: attribute reads, ``forward`` code and registration order stay as they are."""
    parent._modules[key] = child


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
    """Whether any parameter is spread over processes (FSDP2, tensor parallel)."""
    return any("DTensor" in type(parameter).__name__ for parameter in model.parameters())


def forget_compiled(model: nn.Module) -> None:
    """Drop code compiled in place (``model.compile()``): it was compiled for the old structure."""
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            module._compiled_call_impl = None


def tensor_owners(model: nn.Module) -> dict[int, list[str]]:
    """``id(parameter)`` -> the full names of every place that holds it (more than one: tied)."""
    owners: dict[int, list[str]] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in seen:
            continue
        seen.add(id(module))
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{name}.{key}" if name else key)
    return owners


def first_parameter(model: nn.Module) -> torch.Tensor | None:
    """Any floating-point parameter or buffer: tells device and dtype."""
    for tensor in list(model.parameters()) + list(model.buffers()):
        if tensor.is_floating_point():
            return tensor
    return None
