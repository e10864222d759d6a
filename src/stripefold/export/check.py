"""Does a written file compute what the eager model computes?

The truth is a float64 copy of the eager model, with its own weights; what a runtime may add is 4 times the rounding
error that the eager model shows itself, with the floor of its dtype: the policy of `verify` (docs/numerics.md). One
tolerance serves all inputs: the noise of the noisiest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.errors import VerifyError
from stripefold.export.report import Check
from stripefold.folding.outputs import predictions, relative_error
from stripefold.folding.run import call, place
from stripefold.folding.verify import FLOAT64_TOLERANCE, FLOORS, NOISE_FACTOR
from stripefold.surgery.example import Example
from stripefold.surgery.modules import first_parameter
from stripefold.surgery.undisturbed import undisturbed
from stripefold.surgery.values import tensors_of


def check_file(
    compute: Callable[[Example], Any], model: nn.Module, inputs: Mapping[str, Example]
) -> tuple[tuple[Check, ...], float]:
    """Run a loaded file and the eager model on the same inputs.

    Args:
        compute: what the file computes; its output may be nested.
        model: the eager model, folded, on the CPU.
        inputs: in words -> example.

    Returns:
        One row per input, and the tolerance that held.

    Raises:
        VerifyError: the file computes something else, or returns another number of tensors.
    """
    like = first_parameter(model)
    dtype = torch.float32 if like is None else like.dtype
    exact = model if dtype == torch.float64 else copy.deepcopy(model).double()
    checks = tuple(
        _check(name, compute, model, exact, place(model, example, dtype)) for name, example in inputs.items()
    )
    tolerance = _tolerance(dtype, max((check.reference_error for check in checks), default=0.0))
    worst = max(checks, key=lambda check: check.error)
    if not worst.error <= tolerance:
        raise VerifyError(
            f"the file computes something else than the model: on {worst}, allowed {tolerance:.2e}. No file was written"
        )
    return checks, tolerance


def _check(name: str, compute: Callable[[Example], Any], model: nn.Module, exact: nn.Module, example: Example) -> Check:
    eager = _tensors(model, example)
    truth = eager if exact is model else _tensors(exact, place(exact, example, torch.float64))
    with torch.inference_mode():
        found = [tensor for _, tensor in tensors_of(compute(example))]
    if len(found) != len(eager):
        raise VerifyError(f"on {name}, the file returns {len(found)} tensors and the model {len(eager)}")
    pairs = [_errors(one, own, exactly) for one, own, exactly in zip(found, eager, truth, strict=True)]
    return Check(
        inputs=name,
        error=max(error for error, _ in pairs),
        reference_error=max(noise for _, noise in pairs),
        agreement=_agreement(eager, found),
    )


def _errors(found: Tensor, eager: Tensor, truth: Tensor) -> tuple[float, float]:
    return relative_error(found.cpu(), truth.cpu()), relative_error(eager, truth)


def _tensors(model: nn.Module, example: Example) -> list[Tensor]:
    with undisturbed(model):
        return [tensor.detach() for _, tensor in tensors_of(call(model, example))]


def _tolerance(dtype: torch.dtype, noise: float) -> float:
    if dtype == torch.float64:
        return FLOAT64_TOLERANCE
    return max(NOISE_FACTOR * noise, FLOORS.get(dtype, 1e-6))


def _agreement(eager: list[Tensor], found: list[Tensor]) -> float | None:
    a, b = (predictions({str(i): tensor for i, tensor in enumerate(each)}) for each in (eager, found))
    if a is None or b is None or a.shape != b.shape:
        return None
    return float((a == b).double().mean())
