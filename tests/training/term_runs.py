"""Send SIGTERM to one process of a run at random moments; prints how long the others took to end, and what they said.

A script of its own, because a process that has started threads should not fork.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from stripefold_lab import models
from stripefold_lab.training import sharding
from tests.crew import _forked, free_port, torchrun
from tests.training.crew_runs import CONFIG, MODELS, trained

LONGEST = 60.0
"""Seconds after which the others count as hanging; the run's own timeout is far longer."""
RUN = CONFIG.with_overrides(epochs=3, timeout=600)
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "two": ({"devices": 2}, 2),
    "three": ({"devices": 3}, 3),
    "workers": ({"devices": 2, "workers": 1}, 2),
    "fsdp": ({"devices": 2, "strategy": "fsdp"}, 2),
}


def started(config: Any, world: int, folder: Path) -> list[int]:
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    return [_forked(trained(config), rank, world, folder, torchrun(rank, world, port)) for rank in range(world)]


def ended(children: list[int], within: float) -> dict[int, int]:
    """Child -> the signal or status that it ended with; one that hangs is killed, and not in it."""
    ends: dict[int, int] = {}
    deadline = time.monotonic() + within
    while len(ends) < len(children) and time.monotonic() < deadline:
        for child in children:
            if child not in ends and (status := os.waitpid(child, os.WNOHANG))[0]:
                ends[child] = status[1]
        time.sleep(0.01)
    for child in set(children) - ends.keys():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return ends


def epochs_behind(folder: Path) -> int:
    table = folder / "run" / "metrics.csv"
    return table.read_text().count("\n") - 1 if table.exists() else -1


def trial(kind: str, folder: Path, chance: random.Random) -> dict[str, Any]:
    changes, world = KINDS[kind]
    config = RUN.with_overrides(**changes)
    children = started(config, world, folder)
    rank, epoch = chance.randrange(world), chance.randrange(RUN.epochs)
    begun = time.monotonic()
    while epochs_behind(folder) < epoch and time.monotonic() - begun < LONGEST:
        time.sleep(0.002)
    time.sleep(chance.random() ** 2 * 0.5)
    os.kill(children[rank], signal.SIGTERM)
    sent, behind = time.monotonic(), epochs_behind(folder)
    ends = ended(children, LONGEST)
    seconds = time.monotonic() - sent
    texts = [path.read_text() for path in sorted(folder.glob("said-*.json"))]
    for path in folder.glob("said-*.json"):
        path.unlink()
    resumed = ended(started(config.with_overrides(resume=True), world, folder), LONGEST)
    return {
        "kind": kind, "rank": rank, "behind": behind, "seconds": round(seconds, 2), "hung": len(ends) < world,
        "said": [json.loads(text) for text in texts], "resumed": list(resumed.values()) == [0] * world,
    }  # fmt: skip


def main(folder: Path, kinds: str, count: int, seed: int) -> None:
    """Print one trial a line as JSON."""
    torch.set_num_threads(1)
    real = models.create_model
    models.create_model = lambda name, **options: MODELS[name]() if name in MODELS else real(name, **options)
    sharding.UNIT = 1
    chance = random.Random(seed)
    for number in range(count):
        for kind in kinds.split(","):
            found = trial(kind, folder / f"{kind}-{number}", chance)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
