"""An interrupt that Python discards is no fault of the call's, and the timer rings once more."""

from __future__ import annotations

import gc
import time

import pytest

from tests.interrupts.interrupted import Timer


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_inside_a_callback_of_the_collector_comes_again_after_it() -> None:
    landed = []

    def slow(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and not landed:
            landed.append(phase)
            end = time.perf_counter() + 0.2
            while time.perf_counter() < end:
                pass

    def collect() -> None:
        gc.collect()
        landed.append("after the collection")
        time.sleep(5)

    gc.callbacks.append(slow)
    try:
        assert Timer(0.05).run(collect)
    finally:
        gc.callbacks.remove(slow)
    assert landed[0] == "start"
