"""One way of one seed: settle the base as the plan says, bake, judge, write what was found."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import stripefold as sf
from benchmarks.cifar_data import Cifar, Labelled, Normalise, augment
from benchmarks.settle.bases import trained_base
from benchmarks.settle.plan import COMMON, Setting
from stripefold.atomic import write_text
from stripefold.baking.batches import Batches
from stripefold.baking.settle import Settling
from stripefold_lab.training.seeding import derive_seed

CALIBRATION = 2048
BATCH = 128


class Epochs:
    """Whole batches in a new order with new crops in every epoch, which it is told; the seed decides."""

    def __init__(self, part: Labelled, seed: int) -> None:
        self._part, self._seed, self._epoch = part, seed, 0
        self._normalise = Normalise(part.images.device)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "settle epoch", self._epoch))
        part = self._part.part(torch.randperm(len(self._part), generator=generator))
        images = augment(part.images, generator)
        for k in range(len(part) // BATCH):
            here = slice(k * BATCH, (k + 1) * BATCH)
            batch = self._normalise(images[here]).contiguous(memory_format=torch.channels_last)
            yield batch, part.labels[here]


class Trial:
    """The networks and images of one seed.

    Args:
        setting: Of the plan.
        seed: Of the bases and of everything that is drawn.
        data: The images.
        work: Where bases and checkpoints lie.
    """

    def __init__(self, setting: Setting, seed: int, data: Cifar, work: Path) -> None:
        self._setting, self._seed, self._data, self._work = setting, seed, data, work
        chosen = data.train.part(torch.arange(min(CALIBRATION, len(data.train))))
        self._calibration = list(chosen.batches(512))

    def run(self, way: str) -> dict[str, Any]:
        """What a way gives, and what it was given."""
        options = dict(self._setting.ways[way])
        kind = "backbone" if options.pop("backbone", False) else "se"
        control = options.pop("control", False)
        constants = options.pop("constants", "mean")
        base = trained_base(self._setting, kind, self._seed, self._data, self._work)
        found: dict[str, Any] = {
            "setting": self._setting.name, "seed": self._seed, "way": way, "options": self._setting.ways[way],
            "steps": self._setting.steps, "rate": self._setting.rate, "as_given": self.accuracy(base),
        }  # fmt: skip
        start = time.process_time()
        settle = sf.Settle(
            steps=self._setting.steps, lr=self._setting.rate, autocast=torch.bfloat16, seed=self._seed,
            data=Epochs(self._data.train, self._seed), every=20, checkpoint=self.checkpoint(way),
            **COMMON | options,
        )  # fmt: skip
        if control or kind == "backbone":
            model = copy.deepcopy(base)
            Settling(model, (), {}, settle, Batches(settle.data, "data", model)).run()
        else:
            found |= self._constants(base, constants)
            model, report = sf.bake(
                base, [x for x, _ in self._calibration], constants=constants, settle=settle, recalibrate=False
            )
            found |= {"folded": len(report.folded), "gates": len(report.sites), "notes": report.notes}
        found |= {"accuracy": self.accuracy(model), "cpu_seconds": round(time.process_time() - start, 1)}
        return found

    def _constants(self, base: nn.Module, constants: Any) -> dict[str, Any]:
        """All gates at their constants, nothing trained."""
        baked, _ = sf.bake(base, [x for x, _ in self._calibration], constants=constants, recalibrate=False)
        return {"constants": self.accuracy(baked)}

    def checkpoint(self, way: str) -> Path:
        """Where a way keeps its state."""
        return self._work / self._setting.name / f"{way}-seed{self._seed}.settling.pt"

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Top-1 accuracy in percent over the test images, float32."""
        model = model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        test = self._data.test
        hits = [(model(x).argmax(1) == y).sum() for x, y in test.batches(500)]
        return round(100 * float(torch.stack(hits).sum()) / len(test), 4)


def run_way(trial: Trial, way: str, path: Path, session: Mapping[str, Any]) -> None:
    """Run it and write its file; its checkpoint is then given up.

    Args:
        trial: Networks and images.
        way: Name in the plan.
        path: The file.
        session: Who ran it.
    """
    found = trial.run(way)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**found, "session": dict(session)}, indent=1) + "\n")
    trial.checkpoint(way).unlink(missing_ok=True)
    print(f"{path.stem}: as given {found['as_given']}, after {found['accuracy']}, {found['cpu_seconds']} s", flush=True)
