"""A sweep of runs that take a second each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stripefold_lab.sweep import Sweep
from stripefold_lab.sweep.folder import SweepPaths, open_sweep
from stripefold_lab.sweep.trial import TrialJob, run_trial, versions
from stripefold_lab.sweep.trials import Trial, list_settings, list_trials
from stripefold_lab.training import TrainConfig

TINY = {
    "model": "resnet8", "epochs": 1, "batch_size": 32, "limit_train": 64, "limit_test": 64, "threads": 1,
    "accelerator": "cpu", "tensorboard": False, "progress": "lines",
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def sweep() -> Sweep:
    return Sweep(name="tiny", title="Tiny", base=TrainConfig(**TINY), grid={"attention": ["se"]}, seeds=(0, 1))


class Room:
    """A sweep's folder, whose runs are trained in this process, without Ray."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep = sweep
        self.paths, drawn = open_sweep(sweep, folder)
        self.settings = list_settings(sweep, drawn)
        self.trials = list_trials(sweep, self.settings)

    def job(self, **changes: Any) -> TrialJob:
        values = {
            "root": str(self.paths.root),
            "spec": self.paths.spec.read_text(encoding="utf-8"),
            "directory": str(Path.cwd()),
            "versions": versions(),
            "configs": {trial.name: trial.config.to_dict() for trial in self.trials},
            "gpus": 0.0,
        }
        return TrialJob(**{**values, **changes})

    def run(self, trial: Trial) -> dict[str, Any]:
        return run_trial({"trial": trial.name}, self.job())


@pytest.fixture
def room(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a run without a GPU sets it, for the process that is its own
    return Room(sweep, tmp_path / "sweep")


__all__ = ["Room", "SweepPaths"]
