"""What a narrower type holds: the bound that is looked at first decides nothing that rounding would not."""

from __future__ import annotations

import pytest
import torch

from stripefold.algebra.rounding import overflows, underflows

NARROW = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", NARROW)
def test_it_overflows_where_rounding_gives_an_infinity(dtype: torch.dtype) -> None:
    largest = torch.tensor(torch.finfo(dtype).max, dtype=torch.float64)
    step = largest * torch.finfo(dtype).eps
    numbers = [largest * 0.5, largest, -largest, largest + step / 8, largest + step, -largest * 2, largest * torch.inf]
    for number in [*numbers, torch.tensor(torch.nan, dtype=torch.float64)]:
        exact = torch.stack([torch.zeros_like(number), number])
        assert overflows(exact, dtype) == (not bool(exact.to(dtype).isfinite().all())), number
    assert not overflows(torch.empty(0, dtype=torch.float64), dtype)


def test_what_was_not_finite_before_has_not_become_worse() -> None:
    huge = torch.tensor([1e9, 1.0], dtype=torch.float64)
    assert overflows(huge, torch.float16, torch.ones(2, dtype=torch.float16))
    assert not overflows(huge, torch.float16, torch.tensor([torch.inf, 1.0], dtype=torch.float16))
    assert overflows(torch.tensor([torch.inf + 1j]), torch.complex64)
    assert not overflows(torch.tensor([1 + 1j]), torch.complex64)


def test_it_underflows_where_more_than_digits_are_lost() -> None:
    weights = torch.linspace(0.1, 1, 50, dtype=torch.float64)
    assert not underflows(weights, torch.float16)
    assert underflows(weights * 1e-6, torch.float16)
    assert not underflows(weights * 1e-6, torch.bfloat16)
