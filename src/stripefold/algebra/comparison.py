"""How far numbers are from those expected: one measure, and how much of it float64 may show."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT64_TOLERANCE = 1e-10
"""The relative error that is rounding in float64; what is wrong shows more."""


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
