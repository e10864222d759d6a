"""Does a merged number fit the type that it is rounded to? One policy for all that folds."""

from __future__ import annotations

import torch
from torch import Tensor

FOLD_WIDER = "Fold in a wider dtype: model.float()"
"""What to do about numbers that do not fit."""


@torch.no_grad()
def why_unfit(exact: Tensor, dtype: torch.dtype, before: Tensor | None = None, *, is_factor: bool = True) -> str | None:
    """Why a type does not hold merged numbers, as the end of a sentence about them; None where it does.

    It does not where a finite number becomes infinite, nor where rounding a factor loses more than digits. What has
    not become worse is no reason: an infinity that stood there, digits that were lost among the smallest numbers.

    Args:
        exact: float64, or complex128.
        dtype: what it is rounded to.
        before: what stands there, entry by entry; None: nothing yet.
        is_factor: whether something is multiplied by it. A small number that is added is no loss.

    >>> why_unfit(torch.tensor([1e9], dtype=torch.float64), torch.float16)
    'overflows torch.float16'
    """
    if exact.numel() == 0:
        return None
    largest = _largest(exact)
    if not largest <= torch.finfo(dtype).max and _is_made_infinite(exact, dtype, before):  # a NaN is below nothing
        return f"overflows {dtype}"
    # Numbers that are not among a type's smallest lose digits only: a look at the largest settles most tensors.
    if is_factor and 0 < largest < torch.finfo(dtype).tiny * exact.numel() ** 0.5 and _is_lost(exact, dtype, before):
        return f"underflows {dtype}"
    return None


def _largest(exact: Tensor) -> float:
    """The largest absolute value, without a copy of the numbers; NaN where there is one."""
    if exact.is_complex():
        return float(exact.abs().max())
    low, high = exact.aminmax()
    return float(torch.maximum(-low, high))


def _is_made_infinite(exact: Tensor, dtype: torch.dtype, before: Tensor | None) -> bool:
    """Whether a number is not finite once rounded, where one stood that was."""
    bad = ~exact.to(dtype).isfinite()
    if before is not None:
        bad &= before.to(bad.device).reshape(bad.shape).isfinite()
    return bool(bad.any())


def _is_lost(exact: Tensor, dtype: torch.dtype, before: Tensor | None) -> bool:
    """Whether rounding loses more than digits: a scale of 1e-5 in float16 does."""
    limits = torch.finfo(dtype)
    allowed = limits.eps
    stood = 0.0 if before is None or before.dtype != dtype else float(before.to(exact.dtype).norm())
    if stood > 0:  # what lay among the smallest numbers has few digits: twice as coarse as it was is no loss, half is
        allowed = max(allowed, min(limits.tiny * limits.eps * exact.numel() ** 0.5 / stood, 0.5))
    return float((exact.to(dtype).to(exact.dtype) - exact).norm()) > allowed * float(exact.norm())
