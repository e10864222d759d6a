"""What a narrower type holds: the bound that is looked at first decides nothing that rounding would not."""

from __future__ import annotations

import pytest
import torch

from stripefold.algebra.rounding import why_unfit

NARROW = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ONES = torch.ones(2, dtype=torch.float16)


@pytest.mark.parametrize("dtype", NARROW)
def test_it_overflows_where_rounding_gives_an_infinity(dtype: torch.dtype) -> None:
    largest = torch.tensor(torch.finfo(dtype).max, dtype=torch.float64)
    step = largest * torch.finfo(dtype).eps
    numbers = [largest * 0.5, largest, -largest, largest + step / 8, largest + step, -largest * 2, largest * torch.inf]
    for number in [*numbers, torch.tensor(torch.nan, dtype=torch.float64)]:
        exact = torch.stack([torch.zeros_like(number), number])
        infinite = not bool(exact.to(dtype).isfinite().all())
        assert why_unfit(exact, dtype) == (f"overflows {dtype}" if infinite else None), number
    assert why_unfit(torch.empty(0, dtype=torch.float64), dtype) is None


@pytest.mark.parametrize(
    ("before", "unfit"),
    [
        (ONES, True),
        (torch.tensor([torch.inf, 1.0]), False),
        (torch.tensor([torch.nan, 1.0]), False),
        (torch.tensor([1.0, torch.inf]), True),  # another number is infinite now
        (ONES.view(2, 1), True),
        (None, True),
    ],
)
def test_what_was_not_finite_before_has_not_become_worse(before: torch.Tensor | None, unfit: bool) -> None:
    huge = torch.tensor([1e9, 1.0], dtype=torch.float64)
    assert (why_unfit(huge, torch.float16, before) is not None) == unfit


def test_complex_numbers() -> None:
    assert why_unfit(torch.tensor([torch.inf + 1j]), torch.complex64) == "overflows torch.complex64"
    assert why_unfit(torch.tensor([1 + 1j]), torch.complex64) is None


def test_it_underflows_where_more_than_digits_are_lost() -> None:
    weights = torch.linspace(0.1, 1, 50, dtype=torch.float64)
    assert why_unfit(weights, torch.float16) is None
    assert why_unfit(weights * 1e-6, torch.float16) == "underflows torch.float16"
    assert why_unfit(weights * 1e-6, torch.float16, weights.half()) == "underflows torch.float16"
    assert why_unfit(weights * 1e-6, torch.float16, torch.zeros(50).half()) == "underflows torch.float16"
    assert why_unfit(weights * 1e-6, torch.bfloat16) is None
    assert why_unfit(weights * 0, torch.float16) is None


def test_a_small_number_that_is_added_is_no_loss() -> None:
    assert why_unfit(ONES.double() * 1e-9, torch.float16, is_factor=False) is None
    assert why_unfit(ONES.double() * 1e9, torch.float16, is_factor=False) == "overflows torch.float16"


def test_digits_that_were_lost_before_have_not_become_fewer() -> None:
    small = torch.linspace(0.5, 1, 50, dtype=torch.float64).mul(1e-5).half()
    assert why_unfit(small.double() * 0.7, torch.float16) is not None
    assert why_unfit(small.double() * 0.7, torch.float16, small) is None
    assert why_unfit(small.double() * 1e-3, torch.float16, small) == "underflows torch.float16"


@pytest.mark.parametrize("dtype", NARROW)
def test_the_bound_settles_what_rounding_would(dtype: torch.dtype) -> None:
    """Around the smallest numbers: never a loss that the look at the largest number has passed."""
    limits, generator = torch.finfo(dtype), torch.Generator().manual_seed(0)
    seen = set()
    for exponent in range(-12, 13):
        exact = torch.rand(64, generator=generator, dtype=torch.float64) * limits.tiny * 2.0**exponent
        lost = float((exact.to(dtype).double() - exact).norm()) > limits.eps * float(exact.norm())
        assert (why_unfit(exact, dtype) is not None) == lost, exponent
        seen.add(lost)
    assert seen == ({False, True} if dtype != torch.float64 else {False})
