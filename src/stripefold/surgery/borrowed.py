"""See that a copy of a model runs its own modules.

A ``forward`` or a hook that was put on a module and is a closure holds on to the model it was written for. A deep copy
keeps the closure as it is, so the copy goes on with the original's modules, and what is done to its own has no effect.
"""

from __future__ import annotations

import torch
from torch import nn

from stripefold.surgery.example import Example, example_to, examples_of, run_example
from stripefold.surgery.held import held_by_functions
from stripefold.surgery.modules import first_parameter
from stripefold.surgery.structural_copy import structural_copies
from stripefold.surgery.undisturbed import random_state_kept

REMEDY = (
    "a forward or a hook that was put on a module holds on to it. Use types.MethodType for a forward, and the hook's "
    "own argument for the module"
)


def borrowed_module(copied: nn.Module, model: nn.Module, example: Example) -> str | None:
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
        if not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_pre_hook(lambda module, args, name=name: found.append(name))
    like = first_parameter(copied)
    device, dtype = (torch.device("cpu"), None) if like is None else (like.device, like.dtype)
    with torch.no_grad(), random_state_kept(run):
        for each in examples_of(example):
            run_example(run.eval() if run.training else run, example_to(each, device, dtype))
    return found[0] if found else None


def _could_hold_on(module: nn.Module) -> bool:
    return "forward" in module.__dict__ or bool(module._forward_hooks) or bool(module._forward_pre_hooks)
