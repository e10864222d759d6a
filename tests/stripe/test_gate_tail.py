"""The functions between a module and a gate: each is undone, and one that cannot be raises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stripefold.stripe import gate_tail
from stripefold.stripe.gate_tail import GateTail

NUMBER = -1.7
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": torch.nn.functional.hardsigmoid,
    "exp": torch.exp,
    "log_sigmoid_forward": torch.nn.functional.logsigmoid,
    "neg": torch.neg,
    "reciprocal": torch.reciprocal,
    "relu": lambda z: torch.relu(z + 3) - 3,
    "hardtanh": lambda z: torch.nn.functional.hardtanh(z, -3, 3),
    "clamp": lambda z: z.clamp(-3, 3),
    "clamp_min": lambda z: torch.clamp_min(z, -3),
    "clamp_max": lambda z: torch.clamp_max(z, 3),
    "maximum": lambda z: torch.maximum(z, torch.tensor(-3.0)),
    "minimum": lambda z: torch.minimum(z, torch.tensor(3.0)),
    "add": lambda z: z + NUMBER,
    "sub": lambda z: z - NUMBER,
    "rsub": lambda z: NUMBER - z,
    "mul": lambda z: z * NUMBER,
    "div": lambda z: z / NUMBER,
}


def test_every_function_is_tried() -> None:
    assert set(gate_tail._UNDO) == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_undone(name: str) -> None:
    z = torch.tensor([-1.9, -0.4, 0.3, 1.2], dtype=torch.float64)
    tail = GateTail("module", 0, 1, ((name, NUMBER),))
    assert torch.allclose(tail.before(FUNCTIONS[name](z)), z, rtol=1e-12, atol=1e-12)


def test_a_function_that_is_not_in_the_table_is_not_the_identity() -> None:
    with pytest.raises(KeyError, match="softmax"):
        GateTail("module", 0, 1, (("softmax", 0.0),)).before(torch.ones(3))
