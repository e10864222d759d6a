"""One of the two processes of ``test_processes.py``: ``python -m tests.stripe.processes_worker FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import stripefold as sf
from stripefold_lab.processes import joined, leave, torchrun_place
from tests.stripe.gated import Stacked, images, seeded

WORLD = 2
KINDS = ("shares", "one empty", "all empty", "one fails", "one alone")
FIRST = 5
"""Images of the first process; the second has the rest."""


def share(kind: str, rank: int) -> list[torch.Tensor]:
    x = images()
    if kind == "all empty" or (kind == "one empty" and rank == 1):
        return []
    if kind == "one fails" and rank == 1:
        return [x[FIRST:], torch.zeros(2, 9, 4, 4)]
    return [x[:FIRST]] if rank == 0 else [x[FIRST:8], x[8:]]


def observed(kind: str, folder: Path, rank: int) -> str:
    """Observe this process's share; returns what there is to say."""
    model = seeded(Stacked)
    if kind == "one alone":
        return f"{sf.observe(model, share(kind, rank)).images} images" if rank == 0 else "did not look"
    try:
        report = sf.observe(model, share(kind, rank), keep=8, process_group=dist.group.WORLD)
    except sf.errors.ObserveError as error:
        return str(error)
    report.save(folder / f"{kind}-{rank}.safetensors")
    return "done"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    place = torchrun_place()
    with joined(place):
        said = {kind: observed(kind, folder, place.rank) for kind in KINDS}
    (folder / f"{place.rank}.json").write_text(json.dumps(said), encoding="utf-8")
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
