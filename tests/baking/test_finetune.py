"""Training the constants: they learn, nothing else moves, and what cannot work is said in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripefold.baking.batches import Batches
from stripefold.baking.finetune import FineTune, finetune
from stripefold.errors import BakeError
from tests.lifecycle import images, snapshot, tiny

GATE = "blocks.1.bn2"


def start() -> dict[str, Tensor]:
    return {GATE: torch.full((8,), 0.5, dtype=torch.float64)}


def data(model: nn.Module) -> Batches:
    return Batches([(images(8, seed=k), torch.arange(8) % 4) for k in range(3)], "data", model)


def overriding(model: nn.Module) -> Any:
    """Stands for the gates' override: v times the output of one norm."""

    @contextmanager
    def override(constants: Mapping[str, Tensor]) -> Iterator[None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output * constants[GATE].to(output.dtype)[:, None, None]

        handle = model.get_submodule(GATE).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    return override


def loss_with(model: nn.Module, constants: Mapping[str, Tensor]) -> float:
    with overriding(model)(constants), torch.no_grad():
        return sum(F.cross_entropy(model(batch.inputs), batch.labels).item() for batch in data(model))


def test_the_constants_learn_and_nothing_else_moves() -> None:
    model = tiny().eval()
    before = snapshot(model)
    steps: list[int] = []
    options = FineTune(steps=40, lr=0.05)
    found = finetune(model, start(), overriding(model), options, batches=data(model), progress=steps.append)
    assert snapshot(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert steps == list(range(1, 41))  # the data starts over
    assert found[GATE].dtype == torch.float64
    assert loss_with(model, found) < loss_with(model, start()) - 0.03


def test_a_loss_of_the_users() -> None:
    model = tiny().eval()
    options = FineTune(steps=60, lr=0.05, loss=lambda output, labels: output.square().mean())
    found = finetune(model, start(), overriding(model), options, batches=data(model))

    def size(v: Mapping[str, Tensor]) -> float:
        with overriding(model)(v), torch.no_grad():
            return float(model(images()).square().mean())

    assert size(found) < 0.9 * size(start())


def test_constants_do_not_cross_zero() -> None:
    model = tiny().eval()
    first = {GATE: torch.tensor([0.01] * 4 + [-0.01] * 4, dtype=torch.float64)}
    found = finetune(model, first, overriding(model), FineTune(steps=50, lr=0.1), batches=data(model))[GATE]
    assert bool((found[:4] >= 0).all())
    assert not torch.allclose(found, first[GATE], atol=0.05)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_steps_that_are_none(steps: Any) -> None:
    with pytest.raises(BakeError, match="steps must be an integer of at least 1"):
        FineTune(steps=steps)


@pytest.mark.parametrize("lr", [0, -1.0, float("nan"), "fast"])
def test_rates_that_are_none(lr: Any) -> None:
    with pytest.raises(BakeError, match="lr must be a positive finite number"):
        FineTune(lr=lr)


def test_labels_are_needed() -> None:
    model = tiny().eval()
    with pytest.raises(BakeError, match=r"finetune: data has no class numbers to train on"):
        finetune(model, start(), overriding(model), FineTune(), batches=Batches(images(), "data", model))


def test_a_loss_that_is_not_finite() -> None:
    model = tiny().eval()
    options = FineTune(loss=lambda output, labels: output.sum() * float("inf"))
    with pytest.raises(BakeError, match=r"the loss is -?(inf|nan) at step 1: give a lower lr"):
        finetune(model, start(), overriding(model), options, batches=data(model))


@pytest.mark.parametrize("loss", [lambda output, labels: 1.0, lambda output, labels: output])
def test_a_loss_that_is_no_scalar(loss: Any) -> None:
    model = tiny().eval()
    with pytest.raises(BakeError, match="must be a scalar tensor that depends on the gates"):
        finetune(model, start(), overriding(model), FineTune(loss=loss), batches=data(model))
