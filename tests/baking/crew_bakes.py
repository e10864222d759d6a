"""Two processes that bake one model, each with its own batches; prints what each of them found."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold_lab.processes import joined, torchrun_place
from tests.crew import crew
from tests.lifecycle import attached, images

WORLD, BATCHES = 2, 3


def gated() -> nn.Module:
    """Dynamic SE on two branches, every number random, in float64; no class is likelier than another."""
    torch.manual_seed(0)
    model = attached("se", form="dynamic", attention_options={"reduction": 2}).eval()
    with torch.no_grad():
        model.head.bias -= model(images(200, seed=1)).mean(0)
    return model


def data() -> list[tuple[Tensor, Tensor]]:
    """Batches, with what the model itself says as labels: it is right everywhere until a gate is constant."""
    model = gated()
    with torch.no_grad():
        return [(x, model(x).argmax(1)) for x in (images(40, seed=10 + number) for number in range(BATCHES))]


def share(rank: int) -> list[tuple[Tensor, Tensor]]:
    return data()[:2] if rank == 0 else data()[2:]


def closeness_but(rank: int) -> Callable[[nn.Module], float]:
    """A user's metric that says something else on the second process."""
    x, labels = data()[0]

    def metric(model: nn.Module) -> float:
        with torch.no_grad():
            return 100 * float((model(x).argmax(1) == labels).double().mean()) - 50 * rank

    return metric


KINDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "budget": lambda rank: {"max_drop": 10.0, "recalibrate": False},
    "statistics": lambda rank: {"recalibrate": True},
    "own metric": lambda rank: {"max_drop": 10.0, "recalibrate": False, "metric": closeness_but(rank)},
    "finetune": lambda rank: {"finetune": sf.FineTune(steps=1)},
}


def told(report: Any) -> dict[str, Any]:
    """What was decided, and by which figures."""
    rows = [(site.name, site.outcome, site.alone, site.cumulative) for site in report.sites]
    return {"rows": rows, "images": report.images, "before": report.before, "after": report.after}


def baked(kind: str, batches: list[Any], options: dict[str, Any], group: Any) -> tuple[nn.Module, Any]:
    return sf.bake(gated(), batches, process_group=group, speed=kind == "budget", **options)


def in_two(kind: str, rank: int) -> Any:
    batches = [] if kind == "nothing for one" and rank == 1 else share(rank)
    with joined(torchrun_place(), timeout=20) as group:
        try:
            model, report = baked(kind, batches, KINDS.get(kind, KINDS["budget"])(rank), group)
        except sf.errors.StripefoldError as error:
            return f"{type(error).__name__}: {error}"
        torch.save(model.state_dict(), f"{rank}.pt")
    return told(report)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    kinds = [*KINDS, "nothing for one"]
    said = {kind: crew(lambda rank, kind=kind: in_two(kind, rank), WORLD, folder / kind) for kind in kinds}
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
