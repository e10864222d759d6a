"""Does a written file compute what the eager model computes?

The eager model is the one that was given, gates and norms and all, in the modes in which it is used. The truth is a
float64 copy of it, with its own weights; what a runtime may add is 4 times the rounding error that the eager model
shows itself, with the floor of its dtype: the policy of `verify` (docs/explanation/numerics.md). One tolerance serves
all inputs: the noise of the noisiest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.errors import ExportError, VerifyError
from stripefold.export.report import Check
from stripefold.folding.layer_by_layer import call, place
from stripefold.folding.tolerance import agreement, judge
from stripefold.modules.example import Example
from stripefold.modules.float64 import float64_copy
from stripefold.modules.modules import first_parameter
from stripefold.modules.preserve_state import on_copies
from stripefold.modules.tensors import tensors_of


def check_file(compute: Callable[[Example], Any], model: nn.Module, inputs: Mapping[str, Example]) -> tuple[Check, ...]:
    """Run a loaded file and the eager model on the same inputs.

    Args:
        compute: what the file computes; its output may be nested.
        model: the eager model, on the CPU.
        inputs: in words -> example.

    Returns:
        One row per input.

    Raises:
        VerifyError: the file computes something else, or returns another number of tensors.
    """
    like = first_parameter(model)
    dtype = torch.float32 if like is None else like.dtype
    exact = model if dtype == torch.float64 else float64_copy(model)
    checks = tuple(
        _check(name, compute, model, exact, place(model, example, dtype)) for name, example in inputs.items()
    )
    wrong = next((check for check in checks if check.error > check.tolerance), None)
    if wrong is not None:
        raise VerifyError(f"the file computes something else than the model: on {wrong}. No file was written")
    return checks


def _check(name: str, compute: Callable[[Example], Any], model: nn.Module, exact: nn.Module, example: Example) -> Check:
    eager = _tensors(model, example)
    truth = eager if exact is model else _tensors(exact, place(exact, example, torch.float64))
    found = _file_outputs(name, compute, example)
    if len(found) != len(eager):
        raise VerifyError(f"on {name}, the file returns {len(found)} tensors and the model {len(eager)}")
    like = first_parameter(model)
    verdict = judge(found, eager, truth, torch.float32 if like is None else like.dtype)
    return Check(
        inputs=name,
        error=verdict.error,
        reference_error=verdict.reference_error,
        tolerance=verdict.tolerance,
        agreement=agreement(eager, found),
    )


def _file_outputs(name: str, compute: Callable[[Example], Any], example: Example) -> dict[str, Tensor]:
    try:
        with torch.inference_mode():
            return _numbered(compute(example))
    except ExportError:
        raise
    except Exception as error:  # of a runtime: a guard of the program, a shape that it has fixed
        message = (str(error).strip().splitlines() or ["no message"])[0]
        raise VerifyError(
            f"the file does not take {name}, which the model does: {type(error).__name__}: {message}. No file was "
            "written"
        ) from error


def _tensors(model: nn.Module, example: Example) -> dict[str, Tensor]:
    return on_copies(lambda copied: _numbered(call(copied, example)), model)


def _numbered(output: Any) -> dict[str, Tensor]:
    """Number -> tensor: a file may return what the model nests in another structure."""
    return {str(number): tensor.detach().cpu() for number, (_, tensor) in enumerate(tensors_of(output))}
