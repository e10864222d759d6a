"""Bake and observe do work in proportion to the gates: lines are counted, which no other load can disturb."""

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
from stripefold.baking.sites import plan_bake
from stripefold.stripe.discover import Discovery, discover


def lines_in(action: Callable[[], Any]) -> int:
    """How many lines of Python an action runs: a scan over everything shows, though it calls nothing."""
    count = 0

    def note(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def growth(action: Callable[[Any], Any], start: int = 20, *, made: Callable[[int], Any] = chain_of_gates) -> float:
    """How much more the second doubling of the gates adds than the first: 2 where work is in proportion to them."""
    action(made(start))
    once, twice, again = (lines_in(partial(action, made(start * k))) for k in (1, 2, 4))
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
    assert growth(call, 10) < 2.2


class Halved(nn.Module):
    """A chain of which half may be left out."""

    def __init__(self, chain: nn.Sequential) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, x: torch.Tensor, whole: bool = True) -> torch.Tensor:
        *blocks, head = self.chain
        for block in blocks if whole else blocks[: len(blocks) // 2]:
            x = block(x)
        return head(x)


def planned(looked_at: tuple[nn.Module, Discovery], **options: Any) -> None:
    plan_bake(*looked_at, **options)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("residual", [True, False])
def test_planning_grows_with_the_gates(residual: bool, training: bool) -> None:
    """Where no sum stops a scale on its way forward, the walk still looks at nothing that it does not reach."""

    def made(gates: int) -> tuple[nn.Module, Discovery]:
        model = chain_of_gates(gates, residual=residual)
        return model, discover(model, DATA[0])

    assert growth(partial(planned, training=training), made=made) < 2.05


def test_planning_for_several_examples() -> None:
    """Gates that do not run on an example are looked up in it, too."""

    def made(gates: int) -> tuple[nn.Module, Discovery]:
        model = Halved(chain_of_gates(gates))
        return model, discover(model, [(DATA[0], True), (DATA[0], False)])

    assert len(plan_bake(*made(4))) == 4
    assert growth(planned, made=made) < 2.05


@pytest.mark.parametrize(
    "scan",
    [
        lambda model: [list(model.modules()) for _ in model],
        lambda model: [[each for each in range(len(model)) if each > 1] for _ in model],  # calls nothing
    ],
    ids=["of modules", "of numbers"],
)
def test_a_quadratic_action_is_seen(scan: Callable[[nn.Module], Any]) -> None:
    assert growth(scan) > 3
