"""Where a run went wrong: the module that raised, the first layer whose values are not finite."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from stripefold.modules.example import Example, run_example
from stripefold.modules.modules import takes_hooks
from stripefold.modules.tensors import tensors_in


def module_that_failed(model: nn.Module, error: BaseException) -> str:
    """The innermost module of a model in whose ``forward`` an exception was raised, in words."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    traceback = error.__traceback__
    while traceback is not None:
        owner = traceback.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            found = names.get(id(owner), found)
        traceback = traceback.tb_next
    return f"in {found!r}" if found else "in its own forward"


def first_not_finite(model: nn.Module, inputs: Example, batch: str) -> str:
    """Run a batch again and say where its first NaN or infinity appears; call where the run itself was made."""
    for tensor in tensors_in(inputs):
        if not _is_finite(tensor):
            bad = int((~tensor.isfinite()).reshape(len(tensor), -1).any(1).sum()) if tensor.dim() else 1
            return f"{batch}: {bad} of {len(tensor)} inputs hold NaN or infinite values. Look at the data"
    found: list[str] = []

    def look(name: str, module: nn.Module, output: Any) -> None:
        if not found and any(not _is_finite(tensor) for tensor in tensors_in(output)):
            found.append(f"{name!r} ({type(module).__name__})")

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if not takes_hooks(module):
                continue
            handle = module.register_forward_hook(lambda m, args, output, name=name: look(name, m, output))
            stack.callback(handle.remove)
        run_example(model, inputs)
    where = f"first in the output of {found[0]}" if found else "in a gate, and in no module's output when run again"
    return f"{batch}: values that are not finite, {where}. Look at its weights, or at the inputs' range"


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
