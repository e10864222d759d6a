"""Training runs of one, two and three processes, left alone, killed and resumed; prints what each process said.

A script of its own, because a process that has started threads should not fork.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import stripefold as sf
from benchmarks.scale import cost_of
from stripefold_lab import models
from stripefold_lab.processes import ProcessRank, joined, torchrun_place
from stripefold_lab.training import class_maps, runner, sharding
from stripefold_lab.training.boxes import BoxMeter
from stripefold_lab.training.config import TrainConfig
from stripefold_lab.training.training_module import TrainingModule
from tests.crew import crew, slurm


class TokenNet(nn.Module):
    """Tokens, LayerNorm and residual branches: what each image gives depends on no other."""

    def __init__(self, *, unused: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 4, stride=4)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, 10)
        self.unused = nn.Linear(2, 2) if unused else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x).flatten(2).mT).mean(1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class BatchNet(nn.Module):
    """With BatchNorm, whose statistics are those of a process's own images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.norm(self.conv(x))).mean((2, 3)))


class PixelNet(nn.Module):
    """Class maps, without a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(x).relu()
        return {"out": self.head(x + self.norm(self.conv(x)))}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tokens": TokenNet,
    "unused": lambda: TokenNet(unused=True),
    "batchnorm": BatchNet,
}
# The last batch has two images (three processes: one of them has none), the last test batch one.
CONFIG = TrainConfig(
    model="tokens", epochs=2, batch_size=30, limit_train=92, limit_test=61, augmentation="crop-flip", momentum=0.9,
    gradient_clip=1.0, gate_weight_decay=0.0, accelerator="cpu", progress="none", tensorboard=False, threads=1,
    attention_options={"reduction": 2}, run_dir="run", timeout=20,
)  # fmt: skip
SCENES = CONFIG.with_overrides(
    task="segmentation", data="shapes", model="pixels", where=("norm",), image_size=32, batch_size=4, limit_train=7,
    limit_test=5, augmentation="flip", learning_rate=0.1, epochs=2,
)  # fmt: skip
TWO = {"devices": 2}
FSDP = {"devices": 2, "strategy": "fsdp"}
WATCHED = {"observe_every": 1, "observe_images": 20}
RESUME = {"resume": True}


def trained(config: TrainConfig, prepare: Callable[[int], None] | None = None) -> Callable[[int], Any]:
    def run(rank: int) -> Any:
        if prepare is not None:
            prepare(rank)
        result = runner.train(config)
        passed = result.verification.passed and sf.verify(result.model, result.folded, result.example).passed
        return {"accuracy": result.attached.score, "passed": passed, "epochs": result.epochs_run}

    return run


def at_step(step: int, act: Callable[[], None]) -> Callable[[int], None]:
    """The last process does something in the middle of a step."""

    def prepare(rank: int) -> None:
        original = TrainingModule.training_step

        def training_step(self: TrainingModule, *args: object) -> torch.Tensor:
            if self.global_step == step and rank == self.trainer.world_size - 1:
                act()
            return original(self, *args)

        TrainingModule.training_step = training_step

    return prepare


def everyone_takes_the_first_part(rank: int) -> None:
    ProcessRank.part = lambda self, count: range(count // self.world)


def left_alone(folder: Path) -> dict[str, Any]:
    runs: dict[str, tuple[TrainConfig, int]] = {
        "one": (CONFIG.with_overrides(**WATCHED), 1),
        "two": (CONFIG.with_overrides(**TWO, **WATCHED), 2),
        "three": (CONFIG.with_overrides(devices=3), 3),
        "fsdp": (CONFIG.with_overrides(**FSDP), 2),
        "another seed": (CONFIG.with_overrides(seed=1, **TWO), 2),
        "batchnorm, one": (CONFIG.with_overrides(model="batchnorm"), 1),
        "batchnorm, two": (CONFIG.with_overrides(model="batchnorm", **TWO), 2),
        "scenes, one": (SCENES, 1),
        "scenes, two": (SCENES.with_overrides(**TWO), 2),
        "unused": (CONFIG.with_overrides(model="unused", strategy="ddp-unused", epochs=1, **TWO), 2),
    }
    said = {name: crew(trained(config), world, folder / name) for name, (config, world) in runs.items()}
    said["slurm"] = crew(trained(runs["two"][0]), 2, folder / "slurm", launcher=slurm)
    wrong = trained(runs["two"][0], everyone_takes_the_first_part)
    said["wrong parts"] = crew(wrong, 2, folder / "wrong parts")
    said["twice"] = crew(twice, 2, folder / "twice")
    said["boxes"] = crew(boxes, 2, folder / "boxes")
    said["sent"] = crew(sent, 2, folder / "sent")
    return said


def twice(rank: int) -> Any:
    """A second run in the same processes, and an evaluation by one of them alone while the others wait for nothing."""
    config = CONFIG.with_overrides(**TWO, epochs=1, limit_train=30)
    found = [runner.train(config.with_overrides(run_dir=name)).attached.score for name in ("run", "again")]
    gc.collect()  # DDP is part of a cycle, and has the group
    threads = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
    return {
        "same": found[0] == found[1],
        "left": torch.distributed.is_initialized() or any("gloo" in name for name in threads),
    }


def sent(rank: int) -> Any:
    """Bytes that ddp sums over the processes in a backward, and what is computed for them."""
    model = sf.attach_(TokenNet(), "se", attention_options={"reduction": 2}, example=torch.randn(2, 1, 8, 8))
    seen: list[int] = []

    def count(state, bucket):  # torch reads the annotations of a hook, and not as text
        seen.append(bucket.buffer().nbytes)
        return allreduce_hook(state, bucket)

    with joined(torchrun_place(), timeout=20):
        wrapped = DistributedDataParallel(model)
        wrapped.register_comm_hook(None, count)
        wrapped(torch.randn(2, 1, 8, 8)).square().mean().backward()
    return {"sent": sum(seen), "computed": sum(cost_of(model).gradient_bytes)}


def boxes(rank: int) -> Any:
    """Detections of two processes, and of one with the images of both."""
    found, right = zip(*[_detections(image) for image in range(5)], strict=True)
    alone = BoxMeter()
    for first in (0, 2, 4):
        alone.update(list(found[first : first + 2]), list(right[first : first + 2]))
    with joined(torchrun_place(), timeout=20) as group:
        shared = BoxMeter(group=group)
        for image in {0: (0, 2), 1: (1, 3, 4)}[rank]:
            shared.update([found[image]], [right[image]])
        return {"alone": alone.compute(), "shared": shared.compute()}


def _detections(image: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(image)
    corner = 20 * torch.rand(image, 2, generator=generator)
    truth = torch.cat([corner, corner + 10], 1)
    labels = torch.arange(image) % 2 + 1
    shifted = truth + 6 * torch.rand(image, 1, generator=generator)
    scores = torch.rand(image, generator=generator)
    right = {"boxes": truth, "labels": labels, "iscrowd": torch.zeros(image, dtype=torch.long)}
    return {"boxes": shifted, "labels": labels, "scores": scores}, right


def killed_and_resumed(folder: Path) -> dict[str, Any]:
    """Killed in the second epoch, which begins with step 4; a checkpoint of the first one is there."""
    said: dict[str, Any] = {}
    die = at_step(6, lambda: os.kill(os.getpid(), signal.SIGKILL))
    ways: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
        "by two": (TWO, TWO, 2),
        "fsdp by one": (FSDP, {"devices": 1, "strategy": "auto"}, 1),
        "two by fsdp": (TWO, FSDP, 2),
    }
    for name, (before, after, world) in ways.items():
        config = CONFIG.with_overrides(**before)
        said[f"killed, {name}"] = crew(trained(config, die), 2, folder / name)
        (folder / name / "said-0.json").unlink()
        said[name] = crew(trained(config.with_overrides(**RESUME, **after)), world, folder / name)
    stop = at_step(1, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    silent = CONFIG.with_overrides(**TWO, timeout=3)
    said["silent"] = crew(trained(silent, stop), 2, folder / "silent", silent=True)
    return said


def refused(folder: Path) -> dict[str, Any]:
    few = CONFIG.with_overrides(**TWO, limit_test=1)
    kinds: dict[str, TrainConfig] = {
        "more than started": CONFIG.with_overrides(devices=3),
        "fewer than started": CONFIG,
        "more than images": few,
        "sync_batchnorm": CONFIG.with_overrides(**TWO, sync_batchnorm=True),
        "fsdp in half precision": CONFIG.with_overrides(**FSDP, precision="16-mixed"),
        "unused": CONFIG.with_overrides(**TWO, model="unused"),
        "occupied": CONFIG.with_overrides(**TWO, run_dir=str(folder / "occupied")),
        "no data on one": CONFIG.with_overrides(**TWO),
    }
    (folder / "occupied").mkdir()
    (folder / "occupied" / "mine.txt").write_text("x")

    def without_data(rank: int) -> None:
        if rank == 1:
            runner.load_data = _no_data

    prepare = {"no data on one": without_data}
    return {name: crew(trained(config, prepare.get(name)), 2, folder / name) for name, config in kinds.items()}


def _no_data(config: TrainConfig) -> Any:
    from stripefold.errors import DataError

    raise DataError("no folder /data")


def main(folder: Path, part: str) -> None:
    """Print {run: [what each process said]} as JSON."""
    torch.set_num_threads(1)
    real = models.create_model
    models.create_model = lambda name, **options: MODELS[name]() if name in MODELS else real(name, **options)
    models.create_segmenter = lambda name, **options: PixelNet()
    sharding.UNIT = 1  # so that the small blocks are gathered by themselves
    class_maps.IGNORED = 1  # discs do not count, so that images differ in how many of their pixels do
    said = left_alone(folder) if part == "left alone" else {**killed_and_resumed(folder), **refused(folder)}
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
