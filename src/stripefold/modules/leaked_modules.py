"""Detects copies of a model that still call the original's modules, or use its objects.

A ``forward`` or a hook that was put on a module and is a closure holds on to the model it was written for. A deep copy
keeps the closure as it is, so the copy goes on with the original's modules, and what is done to its own has no effect.
So it is with the lists, dictionaries and helper objects of a model that a function holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from stripefold.modules.closure_refs import held_by_functions, inside
from stripefold.modules.example import Example, example_to, examples_of, run_example
from stripefold.modules.modules import first_parameter, is_helper, takes_hooks
from stripefold.modules.preserve_state import random_state_kept
from stripefold.modules.structural_copy import structural_copies

REMEDY = (
    "a forward or a hook that was put on a module holds on to it. Use types.MethodType for a forward, and the hook's "
    "own argument for the module"
)


def leaked_module(copied: nn.Module, model: nn.Module, example: Example) -> str | None:
    """The dotted path of the first module of ``model`` that a run of its copy calls, or None; both stay as they are.

    Args:
        copied: a deep copy of ``model``, perhaps changed since.
        model: what it was copied from.
        example: input for the run, which is made only where something could hold on to a module.
    """
    if not any(_could_hold_on(module) for module in copied.modules()) and not held_by_functions(copied):
        return None
    run, original = structural_copies(copied, model, own_parameters=True)
    found: list[str] = []
    for name, module in original.named_modules():
        if takes_hooks(module):
            module.register_forward_pre_hook(lambda module, args, name=name: found.append(name))
    like = first_parameter(copied)
    device, dtype = (torch.device("cpu"), None) if like is None else (like.device, like.dtype)
    # A copy that does not run is for the comparison to tell of.
    with torch.no_grad(), random_state_kept(run), suppress(Exception):
        for each in examples_of(example):
            run_example(run.eval() if run.training else run, example_to(each, device, dtype))
    return found[0] if found else None


def leaked_object(copied: nn.Module, model: nn.Module) -> str | None:
    """Which list, dictionary or helper object of ``model`` a function of its copy uses in place of its own, in words.

    Many a hook only writes into such an object, and the copy computes the same. So ask where it does not.

    Args:
        copied: a deep copy of ``model``, perhaps changed since.
        model: what it was copied from.
    """
    own = {id(value) for _, value in _objects(copied)}
    foreign = {id(value): path for path, value in _objects(model) if id(value) not in own}
    for path, module in copied.named_modules():
        for key, value in vars(module).items():
            hooks = value.values() if key.endswith("_hooks") and isinstance(value, dict) else None
            for each in (value,) if hooks is None else hooks:
                found = next((foreign[id(held)] for held in _within(each, _DEPTH) if id(held) in foreign), None)
                if found is not None:
                    place = f"a hook on {path!r}" if hooks is not None else repr(f"{path}.{key}" if path else key)
                    return f"{place} holds {found!r} of the model that it was copied from"
    return None


_DEPTH = 4
"""How deep containers, helper objects and functions are looked into."""


def _objects(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything that can be changed and that a module keeps under a name of its own, with its dotted path."""
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith("_"):
                for each in _within(value, _DEPTH, functions=False):
                    yield f"{path}.{key}" if path else key, each


def _within(value: Any, depth: int, *, functions: bool = True) -> Iterator[Any]:
    """The containers and helper objects in a value, and in what functions hold."""
    if depth == 0 or isinstance(value, nn.Module):
        return
    held = inside(value)
    if held:
        parts = held if functions else []
    elif isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, set, deque)):
        parts = list(value)
    else:
        parts = list(vars(value).values()) if is_helper(value) else []
    if not held and (is_helper(value) or isinstance(value, (dict, list, set, deque))):
        yield value
    for part in parts:
        yield from _within(part, depth - 1, functions=functions)


def _could_hold_on(module: nn.Module) -> bool:
    return "forward" in module.__dict__ or bool(module._forward_hooks) or bool(module._forward_pre_hooks)
