"""Calls beside other threads: each sees its own run of its own model, and switches nothing of theirs."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torchvision.transforms.v2 as T
from torch import nn

import stripefold as sf
from tests.interrupts.calls import attached
from tests.interrupts.models import Busy, Plain, images, made
from tests.interrupts.state import switches

SHARED = ("dtype", "deterministic", "fast path", "global hooks")
"""What is of the process: whoever looks from another thread must never see it switched."""


def told(value: Any) -> Any:
    """A result as plain values that can be compared."""
    if isinstance(value, nn.Module):
        return [(name, tensor.numpy().tobytes()) for name, tensor in value.state_dict().items() if "gates" not in name]
    return str(value)


CALLS: dict[str, tuple[Callable[[type[nn.Module]], nn.Module], Callable[[nn.Module], Any]]] = {
    "sites": (made, lambda m: sf.sites(m, "affine", example=images())),
    "observe": (made, lambda m: sf.observe(m, [images(seed=s) for s in range(2)])),
    "attach": (made, lambda m: sf.attach(m, "se", where="norm", example=images())),
    "fold fuse": (attached, lambda m: sf.fold(m, fuse=True, example=images())),
    "verify": (attached, lambda m: sf.verify(m, m, images())),
}


@contextmanager
def beside(action: Callable[[], Any]) -> Iterator[list[int]]:
    """Another thread that does something over and over, and sees whether anything of the process is switched."""
    stop, failed, turns = threading.Event(), [], [0]
    before = {key: switches()[key] for key in SHARED}

    def loop() -> None:
        try:
            while not stop.is_set():
                action()
                assert {key: switches()[key] for key in SHARED} == before
                assert torch.is_grad_enabled()
                turns[0] += 1
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield turns
    finally:
        stop.set()
        thread.join()
    assert failed == []
    assert turns[0] > 0


@pytest.mark.parametrize("name", CALLS)
def test_two_models_in_two_threads(name: str) -> None:
    ready, call = CALLS[name]
    kinds = [Busy, Plain] * 2
    alone = [told(call(ready(kind))) for kind in kinds]
    models, found = [ready(kind) for kind in kinds], [None] * len(kinds)
    before = switches()

    def run(index: int) -> None:
        found[index] = told(call(models[index]))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(kinds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone
    assert switches() == before
    assert found[0] != found[1]  # the comparison can fail


@pytest.mark.parametrize("name", CALLS)
def test_beside_a_prefetch_thread(name: str) -> None:
    ready, call = CALLS[name]
    model = ready(Busy)
    alone = told(call(model))
    transforms = T.Compose([T.RandomResizedCrop(6), T.RandomHorizontalFlip(), T.Normalize([0.5], [2.0])])
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with beside(lambda: other(transforms(images()))):
        assert [told(call(model)) for _ in range(3)] == [alone] * 3


@pytest.mark.parametrize("kind", [Busy, Plain])
@pytest.mark.parametrize("name", CALLS)
def test_beside_a_thread_that_runs_the_same_model(name: str, kind: type[nn.Module]) -> None:
    ready, call = CALLS[name]
    model = ready(kind)
    alone, x = told(call(model)), images(seed=7)
    expected = model(x)

    def serve() -> None:
        assert torch.equal(model(x), expected)
        assert not model.training

    with beside(serve):
        assert [told(call(model)) for _ in range(3)] == [alone] * 3


@pytest.mark.parametrize("name", CALLS)
def test_beside_a_training_loop_on_the_same_model(name: str) -> None:
    ready, call = CALLS[name]

    def steps(model: nn.Module) -> Iterator[float]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for step in range(10**6):
            optimizer.zero_grad()
            loss = model(images(seed=step)).square().mean()
            loss.backward()
            optimizer.step()
            assert all(m.training for m in model.modules())
            yield loss.item()

    model, losses, lines = ready(Busy).train(), [], []
    training = steps(model)
    with beside(lambda: losses.append(next(training))), warnings.catch_warnings():
        for _ in range(3):
            try:
                call(model)
            except sf.errors.StripefoldError as refusal:
                lines.append(str(refusal).count("\n"))
    assert not any(lines)
    assert losses == [loss for loss, _ in zip(steps(ready(Busy).train()), losses, strict=False)]
