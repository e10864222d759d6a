"""Two networks in onnxruntime, measured in turns."""

from __future__ import annotations

import statistics
import time

import onnx

from stripefold.baking.report import Speed
from stripefold.onnx.session import Feed, Session

ROUNDS, WARMUP = 11, 2


def side_by_side(
    before: onnx.ModelProto, after: onnx.ModelProto, feed: Feed, size: int, *, threads: int = 0, rounds: int = ROUNDS
) -> Speed:
    """Median seconds of both, taken in turns so that whatever disturbs the machine disturbs both.

    Args:
        before: the original.
        after: the baked one.
        feed: what both run on.
        size: samples in it.
        threads: of onnxruntime.
        rounds: how often both are run.
    """
    sessions = [Session(proto, "the network", threads=threads) for proto in (before, after)]
    samples: tuple[list[float], list[float]] = ([], [])
    for turn in range(WARMUP + rounds):
        for index in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            sessions[index].run(feed)
            if turn >= WARMUP:
                samples[index].append(time.perf_counter() - start)
    first, second = (statistics.median(taken) for taken in samples)
    return Speed(before=first, after=second, batch=size, device="cpu")
