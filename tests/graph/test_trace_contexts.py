"""Surroundings in which a model may be traced: each must see the same branch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from stripefold.graph.trace import trace
from tests.graph.affine import is_affine


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.first(x).relu())


class Checkpointed(Block):
    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


class Reentrant(Checkpointed):
    reentrant = True


class CallsForward(Block):
    """Some code calls ``forward`` directly: hooks do not see it, the weights tell."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last.forward(self.first.forward(x).relu())


def normalised() -> Block:
    block = Block()
    parametrizations.weight_norm(block.last)
    parametrizations.spectral_norm(block.first)
    return block


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # torch's own, of Reentrant
@pytest.mark.parametrize("build", [Block, Checkpointed, Reentrant, CallsForward, normalised])
@pytest.mark.parametrize(
    "surroundings",
    [nullcontext, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["plain", "no_grad", "inference_mode", "autocast"],
)
def test_same_branch_everywhere(build: Callable[[], Block], surroundings: Callable[[], AbstractContextManager[None]]):
    model = build()
    with surroundings():
        result = trace(model, torch.randn(2, 4), is_layer=is_affine)
    assert [tail.name for tail in result.residual_tails()] == ["last"]
    assert [call.name for call in result.graph.calls] == ["first", "last"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype):
    result = trace(Block().to(dtype), torch.randn(2, 4, dtype=dtype), is_layer=is_affine)
    assert [tail.name for tail in result.residual_tails()] == ["last"]


def test_models_compiled_in_place_are_run_as_they_are_written():
    model = Block()
    model._compiled_call_impl = lambda *args: pytest.fail("the compiled call ran")
    result = trace(model, torch.randn(2, 4), is_layer=is_affine)
    assert [tail.name for tail in result.residual_tails()] == ["last"]
    assert model._compiled_call_impl is not None
