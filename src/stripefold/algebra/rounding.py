"""Does a number survive being rounded to a narrower type?"""

from __future__ import annotations

import torch
from torch import Tensor


def overflows(exact: Tensor, dtype: torch.dtype, before: Tensor | None = None) -> bool:
    """Whether finite numbers are infinite once they are rounded, or were made infinite by what was merged.

    Args:
        exact: float64.
        dtype: what it is rounded to.
        before: what stood there; where that was not finite either, nothing has become worse.
    """
    if exact.numel() == 0 or _within(exact, dtype):
        return False
    if before is not None and not bool(before.isfinite().all()):
        return False
    return not bool(exact.to(dtype).isfinite().all())


def _within(exact: Tensor, dtype: torch.dtype) -> bool:
    """Whether all numbers lie in a type's range, seen without a copy of them; a NaN lies in none."""
    if exact.is_complex():
        return False
    low, high = exact.aminmax()
    return max(-float(low), float(high)) <= torch.finfo(dtype).max and not bool(low.isnan())


def underflows(exact: Tensor, dtype: torch.dtype) -> bool:
    """Whether rounding loses more than digits: a scale of 1e-5 in float16 does."""
    return float((exact.to(dtype).double() - exact).norm()) > torch.finfo(dtype).eps * float(exact.norm())
