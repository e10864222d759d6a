"""A forward pass of two models, measured in turns; `stripefold_lab.bench` measures with more care."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from stripefold.baking.report import Speed
from stripefold.modules.example import run_example
from stripefold.modules.modules import first_parameter
from stripefold.stripe.batches import Batch

ROUNDS, WARMUP = 11, 2


def side_by_side(before: nn.Module, after: nn.Module, batch: Batch) -> Speed:
    """Median seconds of both, taken in turns so that whatever disturbs the machine disturbs both.

    Args:
        before: in evaluation mode.
        after: likewise, on the same device.
        batch: what both run on.
    """
    like = first_parameter(before)
    device = torch.device("cpu") if like is None else like.device
    samples: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for turn in range(WARMUP + ROUNDS):
            for index in (0, 1) if turn % 2 else (1, 0):
                seconds = _timed((before, after)[index], batch, device)
                if turn >= WARMUP:
                    samples[index].append(seconds)
    medians = [statistics.median(taken) for taken in samples]
    return Speed(before=medians[0], after=medians[1], batch=batch.size, device=str(device))


def _timed(model: nn.Module, batch: Batch, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run_example(model, batch.inputs)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
