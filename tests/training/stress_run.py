"""Kill training runs at random moments, resume each until it ends, and compare with runs that were left alone.

As killed_run.py, whose moments are chosen: here they are not, and the data is read by 0, 1, 2 or 4 processes. A run is
killed again and again while it is resumed. Prints what it did as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from killed_run import CONFIG, TinyNet, digest

from stripefold_lab import models
from stripefold_lab.training import runner
from stripefold_lab.training.config import TrainConfig

WORKERS = (0, 1, 2, 4)
MOST_KILLS_OF_A_RUN = 5
TASK = CONFIG.with_overrides(epochs=6, threads=1)


def forked(config: TrainConfig) -> int:
    child = os.fork()
    if child:
        return child
    try:
        runner.train(config)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def ended(child: int) -> None:
    """Wait until a run has ended well."""
    deadline = time.monotonic() + 300
    while not (status := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            raise SystemExit("a run hung")
        time.sleep(0.002)
    if status[1]:
        raise SystemExit(f"a run failed with status {status[1]}")


def killed(child: int, folder: Path, chance: random.Random, delay: float) -> bool:
    """Whether a run was killed: a short time after it started or finished an epoch, unless it ends before."""
    epoch, deadline = epochs_behind(folder) + chance.choice((0, 1, 1)), None
    while not os.waitpid(child, os.WNOHANG)[0]:
        if deadline is None and epochs_behind(folder) >= epoch:
            deadline = time.monotonic() + delay * chance.random() ** 2
        if deadline is not None and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.001)
    return False


def epochs_behind(folder: Path) -> int:
    table = folder / "metrics.csv"
    return table.read_text().count("\n") - 1 if table.exists() else 0


def killed_run(config: TrainConfig, delay: float, chance: random.Random, most: int) -> list[int]:
    """How many epochs a run had behind it whenever it was killed, before it ended."""
    behind: list[int] = []
    folder = Path(str(config.run_dir))
    resumed = config.with_overrides(resume=True)  # also before there is anything to resume, as a sweep does
    while len(behind) < most and killed(forked(resumed), folder, chance, delay):
        behind.append(epochs_behind(folder))
    ended(forked(resumed))
    return behind


def main(folder: Path, wanted: int, seed: int) -> None:
    """Print {workers: {behind, alone, ends}} and what another seed gives as JSON."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    models.create_model = lambda name, **options: TinyNet()
    chance = random.Random(seed)
    found: dict[str, Any] = {}
    for workers in WORKERS:
        config = TASK.with_overrides(workers=workers, run_dir="run")
        started = time.monotonic()
        alone = in_folder(folder / f"{workers}-alone", partial(ended_alone, config))[1]
        delay = (time.monotonic() - started) / TASK.epochs
        said: dict[str, Any] = {"alone": alone, "ends": [], "behind": []}
        while (left := wanted // len(WORKERS) - len(said["behind"])) > 0:
            act = partial(killed_run, config, delay, chance, min(MOST_KILLS_OF_A_RUN, left))
            behind, end = in_folder(folder / f"{workers}-{len(said['ends'])}", act)
            said["behind"] += behind
            said["ends"].append(end)
        found[str(workers)] = said
    other = partial(ended_alone, TASK.with_overrides(seed=1, run_dir="run"))
    found["another seed"] = in_folder(folder / "seed", other)[1]
    sys.stdout.write(json.dumps(found))


def ended_alone(config: TrainConfig) -> None:
    ended(forked(config))


def in_folder(place: Path, act: Any) -> tuple[Any, dict[str, object]]:
    """What an act gives, and what the run left; all runs have one relative name, for it is part of their files."""
    place.mkdir(parents=True)
    os.chdir(place)
    return act(), digest(place / "run")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
