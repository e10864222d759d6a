"""Run a tiny training in children that SIGKILL themselves at chosen moments, resume each, print a digest of each end.

A script of its own: the parent imports everything once and forks, so that seven processes cost little more than one.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from stripefold_lab import models
from stripefold_lab.training import checkpoint, runner
from stripefold_lab.training.config import TrainConfig
from stripefold_lab.training.training_module import TrainingModule


class TinyNet(nn.Module):
    """A network with everything that has a memory: BatchNorm, a residual branch, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.stem(x)).relu()
        x = (x + self.norm2(self.conv(x))).relu()
        return self.head(self.dropout(x.mean((2, 3))))


CONFIG = TrainConfig(
    model="tiny", epochs=3, batch_size=32, limit_train=128, limit_test=64, augmentation="crop-flip", momentum=0.9,
    accelerator="cpu", progress="none", tensorboard=False, attention_options={"reduction": 2},
)  # fmt: skip
# 4 steps an epoch; the first epoch writes best.ckpt and last.ckpt.


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_step(step: int) -> None:
    original = TrainingModule.training_step

    def training_step(self: TrainingModule, *args: object) -> torch.Tensor:
        if self.global_step == step:
            die()
        return original(self, *args)

    TrainingModule.training_step = training_step


def kill_while_writing(file: str, nth: int) -> None:
    """Die with half of the nth write of ``file`` on the disk."""
    original, seen = Path.write_bytes, [0]

    def write_bytes(self: Path, data: memoryview) -> int:
        seen[0] += file in self.name
        if seen[0] == nth and file in self.name:
            original(self, bytes(data)[: len(data) // 2])
            die()
        return original(self, data)

    Path.write_bytes = write_bytes


def kill_after_writing(file: str, nth: int) -> None:
    original, seen = checkpoint.SafeCheckpointIO.save_checkpoint, [0]

    def save_checkpoint(
        self: checkpoint.SafeCheckpointIO, content: dict, path: Path, storage_options: object = None
    ) -> None:
        original(self, content, path)
        seen[0] += file in str(path)
        if seen[0] == nth and file in str(path):
            die()

    checkpoint.SafeCheckpointIO.save_checkpoint = save_checkpoint


def kill_before_folding() -> None:
    runner.finish = lambda *args, **kwargs: die()


MOMENTS: dict[str, Callable[[], None]] = {
    "before the first checkpoint": lambda: kill_at_step(2),
    "in the middle of an epoch": lambda: kill_at_step(6),
    "while the last checkpoint is written": lambda: kill_while_writing("last.ckpt", 2),
    "right after it was written": lambda: kill_after_writing("last.ckpt", 2),
    "between the best and the last checkpoint": lambda: kill_after_writing("best.ckpt", 1),
    "after training, before folding": kill_before_folding,
}


def in_child(prepare: Callable[[], None] | None, config: TrainConfig) -> int:
    """The signal that ended a training run of its own process, 0 if none did."""
    child = os.fork()
    if child == 0:
        try:
            if prepare is not None:
                prepare()
            runner.train(config)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a run failed")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def digest(folder: Path) -> dict[str, object]:
    """What a finished run left, without its times."""
    rows = [line.split(",")[:-1] for line in (folder / "metrics.csv").read_text().splitlines()]
    state = checkpoint.read_checkpoint(folder / "checkpoints" / "last.ckpt")
    tensors = hashlib.sha256()
    for name, tensor in sorted(state["state_dict"].items()):
        tensors.update(name.encode() + tensor.numpy().tobytes())
    for momentum in state["optimizer_states"][0]["state"].values():
        tensors.update(momentum["momentum_buffer"].numpy().tobytes())
    return {
        "weights": tensors.hexdigest(),
        "folded": hashlib.sha256((folder / "folded.safetensors").read_bytes()).hexdigest(),
        "rows": rows,
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()),
    }


def main(folder: Path) -> None:
    """Print {moment: digest} as JSON."""
    torch.set_num_threads(1)
    models.create_model = lambda name, **options: TinyNet()
    found: dict[str, object] = {}
    for moment, prepare in {"left alone": None, **MOMENTS}.items():
        # The same relative folder name, because the configuration is part of the files that are compared.
        place = folder / moment.replace(" ", "-")
        place.mkdir()
        os.chdir(place)
        ended = in_child(prepare, CONFIG.with_overrides(run_dir="run"))
        if (ended == signal.SIGKILL) != (prepare is not None):
            raise SystemExit(f"{moment}: ended by signal {ended}")
        if prepare is not None:
            in_child(None, CONFIG.with_overrides(run_dir="run", resume=True))
        found[moment] = digest(place / "run")
    (folder / "seed").mkdir()
    os.chdir(folder / "seed")
    in_child(None, CONFIG.with_overrides(run_dir="run", seed=1))
    found["another seed"] = digest(folder / "seed" / "run")
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
