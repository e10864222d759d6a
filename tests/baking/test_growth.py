"""Bake and observe do work in proportion to the gates: Python calls are counted, which no other load can disturb."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import stripefold as sf
from benchmarks.growth import chain_of_gates


def calls_in(action: Callable[[], Any]) -> int:
    """How many Python functions and builtins an action calls."""
    count = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


def growth(action: Callable[[nn.Module], Any], start: int = 20) -> float:
    """How much more the second doubling of the gates adds than the first: 2 where work is in proportion to them."""
    action(chain_of_gates(start))
    once, twice, again = (calls_in(partial(action, chain_of_gates(start * k))) for k in (1, 2, 4))
    return (again - twice) / (twice - once)


DATA = [torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(k)) for k in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        lambda model: sf.observe(model, DATA),
        lambda model: sf.bake(model, DATA),
        lambda model: sf.bake_(model, DATA, constants="energy"),
        lambda model: sf.bake(model, DATA, to="asr"),
    ],
    ids=["observe", "bake", "in place", "asr"],
)
def test_work_grows_with_the_gates(call: Callable[[nn.Module], Any]) -> None:
    assert growth(call) < 2.2


def test_a_quadratic_action_is_seen() -> None:
    assert growth(lambda model: [list(model.modules()) for _ in model]) > 3
