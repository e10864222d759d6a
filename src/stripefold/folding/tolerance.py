"""The numeric tolerance: how large an error may be, from the rounding noise of the reference itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stripefold.algebra.comparison import FLOAT64_TOLERANCE
from stripefold.errors import VerifyError
from stripefold.folding.outputs import predictions, relative_errors

NOISE_FACTOR = 4.0
"""How much more rounding error than the reference the other model may show."""
FLOORS = {torch.float32: 1e-6, torch.float16: 8 * 2**-10, torch.bfloat16: 8 * 2**-7}
"""Smallest tolerance per dtype: about eight roundings, for outputs that happen to be hit by hardly any."""


class NothingComparedError(VerifyError):
    """Both outputs are empty, or nothing but rounding: neither a match nor a mismatch."""


@dataclass(frozen=True, kw_only=True)
class EquivalenceResult:
    """What is said of several outputs: of the worst of them, of those that fail if any does.

    Attributes:
        where: Path of that output.
        error: Its largest difference from the truth, over the truth's largest value.
        reference_error: The noise that it is judged by, in the same unit.
        tolerance: The largest error allowed.
    """

    where: str
    error: float
    reference_error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether every output is within its tolerance."""
        return self.error <= self.tolerance


def judge(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    tolerance: float | None = None,
) -> EquivalenceResult:
    """Judge outputs by the noise of the reference.

    Args:
        found: Path -> what is judged.
        expected: What the reference computes in ``dtype``.
        truth: What it computes in float64; ``expected`` itself where that is the dtype.
        dtype: What was computed in.
        tolerance: The relative error allowed; None follows the policy.

    Raises:
        VerifyError: The structures differ, or the reference overflows.
        NothingComparedError: Rounding alone turns every output over.
    """
    noise = relative_errors(expected, truth)
    _check_overflow(max(noise.values()), dtype)
    errors = relative_errors(found, truth)
    yardstick = noise if tolerance is not None else _yardsticks(truth, noise, dtype)
    allowed = {path: _tolerance(dtype, own) if tolerance is None else tolerance for path, own in yardstick.items()}
    where = max(errors, key=lambda path: (errors[path] > allowed[path], errors[path]))
    return EquivalenceResult(
        where=where, error=errors[where], reference_error=yardstick[where], tolerance=allowed[where]
    )


def agreement(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float | None:
    """Fraction of equal arg-max predictions, or None where the outputs do not look like scores."""
    a, b = predictions(expected), predictions(found)
    if a is None or b is None or a.shape != b.shape:
        return None
    return float((a == b).double().mean())


def _yardsticks(truth: Mapping[str, Tensor], noise: Mapping[str, float], dtype: torch.dtype) -> dict[str, float]:
    """Path -> the noise that an output is judged by: that of the noisiest output, without those that say nothing.

    These are judged by their own alone: indices, which jump, and what rounding turns over completely.

    Raises:
        NothingComparedError: no output says anything.
    """
    telling = [path for path in noise if truth[path].is_floating_point() and _tolerance(dtype, noise[path]) < 1]
    if not telling and any(truth[path].is_floating_point() and truth[path].numel() for path in noise):
        raise NothingComparedError(
            f"rounding to {str(dtype).removeprefix('torch.')} alone changes the reference's outputs by "
            f"{max(noise.values()):.2g} of their largest value, so that everything would pass: nothing was compared. "
            "Verify in float64"
        )
    common = max((noise[path] for path in telling), default=0.0)
    return {path: common if path in telling else own for path, own in noise.items()}


def _tolerance(dtype: torch.dtype, noise: float) -> float:
    if dtype == torch.float64:
        return FLOAT64_TOLERANCE
    return max(NOISE_FACTOR * noise, FLOORS.get(dtype, 1e-6))


def _check_overflow(noise: float, dtype: torch.dtype) -> None:
    if noise == float("inf"):  # it would allow every error
        raise VerifyError(
            f"the reference model overflows in {str(dtype).removeprefix('torch.')} on this example, and not in "
            "float64: nothing can be compared. Verify in a wider dtype, or on another example"
        )
