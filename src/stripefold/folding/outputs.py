"""Compare what two models return, whatever its structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stripefold.errors import VerifyError
from stripefold.modules.tensors import tensors_of


def compared(output: Any) -> dict[str, Tensor]:
    """Path -> detached tensor of everything a model returned.

    Raises:
        VerifyError: nothing in the output is a tensor.
    """
    found = {path: tensor.detach() for path, tensor in tensors_of(output)}
    if not found:
        raise VerifyError(f"the model returned no tensor (a {type(output).__name__}): nothing can be compared")
    return found


def relative_error(other: Tensor, reference: Tensor) -> float:
    """Largest absolute difference over the largest absolute value of the reference; NaN counts as infinite.

    Infinities at the same place and of the same sign (masks) agree.
    """
    if other.shape != reference.shape:
        return float("inf")
    if other.numel() == 0:
        return 0.0
    is_complex = other.is_complex() or reference.is_complex()
    a, b = (t.to(torch.complex128 if is_complex else torch.float64) for t in (other, reference))
    difference = (a - b).abs().masked_fill(a == b, 0.0)
    finite = b[b.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 1.0
    worst = float(difference.max())
    return float("inf") if worst != worst else worst / size if size else worst


def worst_error(other: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> tuple[str, float]:
    """The output with the largest relative error, and that error.

    Raises:
        VerifyError: the two outputs are not made alike.
    """
    errors = relative_errors(other, reference)
    worst = max(errors, key=lambda path: errors[path])
    return worst, errors[worst]


def relative_errors(other: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    """Path -> relative error of every output.

    Raises:
        VerifyError: the two outputs are not made alike.
    """
    if list(other) != list(reference):
        structures = " and ".join(", ".join(list(outputs)[:4]) for outputs in (reference, other))
        raise VerifyError(f"the two models return different structures: {structures}")
    return {path: relative_error(other[path], reference[path]) for path in reference}


def predictions(outputs: Mapping[str, Tensor]) -> Tensor | None:
    """The arg-max classes of the first output that looks like scores: (N, K), (N, K, H, W) or (N, L, K)."""
    for tensor in outputs.values():
        if tensor.is_floating_point() and tensor.dim() in (2, 3, 4) and tensor.numel():
            return tensor.argmax(dim=1 if tensor.dim() == 4 else -1)
    return None
