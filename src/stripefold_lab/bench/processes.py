"""What a fresh interpreter or a command costs: imports are paid once per process, so each sample is a process.

Modules are compiled once, as they are after an installation, whatever ``PYTHONDONTWRITEBYTECODE`` says: where nothing
keeps the compiled code, every sample would measure the compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from stripefold.errors import StripefoldError
from stripefold_lab.bench.environment import describe_environment
from stripefold_lab.bench.report import Report, Row, Spread

TIMER = "import time; {setup}; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Python code timed in a fresh interpreter, after `setup`."""

    statement: str
    setup: str = "pass"


def measure_processes(
    title: str, tasks: Mapping[str, Statement | Sequence[str]], *, rounds: int = 9, date: str = ""
) -> Report:
    """Time statements in fresh interpreters, and whole commands, round after round.

    Args:
        title: What is measured, in words.
        tasks: Row name -> a statement, or the command line of a process that is timed from start to end.
        rounds: Samples of each; one more comes first and is thrown away (it compiles the modules and fills the file
            cache).
        date: Day of the measurement.

    Raises:
        StripefoldError: A process failed; its own words are in the message.
    """
    samples: dict[str, list[float]] = {name: [] for name in tasks}
    with tempfile.TemporaryDirectory() as compiled:
        timers = {name: _timer(task, _environment(compiled)) for name, task in tasks.items()}
        for index in range(rounds + 1):
            for name, timer in timers.items():
                seconds = timer()
                if index:
                    samples[name].append(seconds)
    baseline = next(iter(samples.values()))
    rows = tuple(
        Row(
            name=name,
            seconds=Spread.of(values),
            ratio=Spread.of([one / base for one, base in zip(values, baseline, strict=True)]),
        )
        for name, values in samples.items()
    )
    environment = describe_environment(torch.device("cpu"))
    return Report(title=title, date=date, environment=environment, settings={"rounds": rounds}, rows=rows)


def _environment(compiled: str) -> dict[str, str]:
    """This process's, with a folder that keeps compiled modules."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": compiled}


def _timer(task: Statement | Sequence[str], environment: Mapping[str, str]) -> Callable[[], float]:
    if isinstance(task, Statement):
        code = TIMER.format(setup=task.setup, statement=task.statement)
        return lambda: float(_run([sys.executable, "-c", code], environment))
    command = list(task)

    def timed() -> float:
        start = time.perf_counter()
        _run(command, environment)
        return time.perf_counter() - start

    return timed


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise StripefoldError(f"bench: {' '.join(command)!r} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
