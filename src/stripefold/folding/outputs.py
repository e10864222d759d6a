"""Compare what two models return, whatever its structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stripefold.algebra.comparison import relative_error
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
