"""Rounds over all candidates, so that whatever disturbs the machine disturbs them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stripefold.errors import ConfigError
from stripefold_lab.bench.environment import describe_environment
from stripefold_lab.bench.memory import peak_bytes
from stripefold_lab.bench.report import Report, Row, Spread


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One thing to measure.

    Attributes:
        name: How the row is called.
        run: What is timed.
        prepare: Called before every `run`, outside the clock.
        held: Tensors that are alive from the start; the peak memory counts them.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    held: Callable[[], Sequence[Tensor]] = field(default=tuple)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a measurement is made.

    Attributes:
        rounds: How often each candidate is sampled.
        warmup: Calls of each candidate before the first sample.
        calls: Calls in one sample; the sample is their mean.
        memory: Whether the peak memory is measured too (one more call per candidate).
        seed: Seed of models and inputs.
        device: Where it runs.
        dtype: `float32`, or `bfloat16` under autocast.
        channels_last: Whether models and images are laid out channels last.
    """

    rounds: int = 15
    warmup: int = 2
    calls: int = 1
    memory: bool = True
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("warmup", 0), ("calls", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"bench: {name}={getattr(self, name)} is too small, give at least {least}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"bench: unknown dtype {self.dtype!r}, choose float32 or bfloat16")


def interleave(candidates: Sequence[Candidate], settings: Settings) -> dict[str, list[float]]:
    """Time every candidate once per round, each round starting one candidate later.

    Args:
        candidates: What to time; names are unique.
        settings: Rounds, warm-up, calls and device.

    Returns:
        Name -> seconds per call, one value per round.

    Raises:
        ConfigError: No candidates, or two of the same name.
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"bench: candidates need unique names, found {names}")
    synchronize = _synchronizer(settings.device)
    for candidate in candidates:
        for _ in range(settings.warmup):
            _sample(candidate, 1, synchronize)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for index in range(settings.rounds):
        start = index % len(candidates)
        for candidate in (*candidates[start:], *candidates[:start]):
            samples[candidate.name].append(_sample(candidate, settings.calls, synchronize))
    return samples


def compare(title: str, candidates: Sequence[Candidate], settings: Settings, *, date: str = "") -> Report:
    """Measure all candidates against the first one.

    Args:
        title: What is measured, in words.
        candidates: The first is the baseline of every ratio.
        settings: How it is measured.
        date: Day of the measurement; this function never asks the clock.

    Returns:
        Medians, quartiles and ratios; see `Report`.
    """
    samples = interleave(candidates, settings)
    peaks = {c.name: _peak(c, settings) if settings.memory else None for c in candidates}
    baseline = candidates[0].name
    rows = tuple(
        Row(
            name=name,
            seconds=Spread.of(seconds),
            ratio=Spread.of([one / base for one, base in zip(seconds, samples[baseline], strict=True)]),
            peak_bytes=peaks[name],
            peak_ratio=_ratio(peaks[name], peaks[baseline]),
        )
        for name, seconds in samples.items()
    )
    return Report(
        title=title,
        date=date,
        environment=describe_environment(torch.device(settings.device)),
        settings={name: getattr(settings, name) for name in settings.__dataclass_fields__},
        rows=rows,
    )


def _sample(candidate: Candidate, calls: int, synchronize: Callable[[], None]) -> float:
    seconds = []
    for _ in range(calls):
        if candidate.prepare is not None:
            candidate.prepare()
        synchronize()
        start = time.perf_counter()
        candidate.run()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.fmean(seconds)


def _peak(candidate: Candidate, settings: Settings) -> int:
    if candidate.prepare is not None:
        candidate.prepare()
    return peak_bytes(candidate.run, held=candidate.held(), device=settings.device)


def _ratio(value: int | None, base: int | None) -> float | None:
    return value / base if value is not None and base else None


def _synchronizer(device: str) -> Callable[[], None]:
    if torch.device(device).type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None
