"""As killed_run.py, for segmentation and detection: one child dies in the middle of an epoch and is resumed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from killed_run import die, digest, in_child

from stripefold_lab.training.config import TrainConfig
from stripefold_lab.training.training_module import TrainingModule

COMMON = {
    "data": "shapes", "image_size": 32, "epochs": 2, "batch_size": 4, "limit_train": 12, "limit_test": 4,
    "learning_rate": 0.01, "augmentation": "flip", "accelerator": "cpu", "progress": "none", "tensorboard": False,
    "threads": 1, "run_dir": "run",
}  # fmt: skip
CONFIGS = {
    "segmentation": TrainConfig(
        task="segmentation", model="fcn_resnet18", where=("backbone.layer2.*.bn2",), **COMMON
    ),
    "detection": TrainConfig(
        task="detection", model="fasterrcnn_resnet18_fpn", where=("backbone.body.layer2.*.bn2",),
        model_options={"stages": 2, "width": 8, "rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 8},
        **COMMON,
    ),
}  # fmt: skip


def kill_in_the_second_epoch() -> None:
    original = TrainingModule.training_step

    def training_step(self: TrainingModule, *args: object) -> torch.Tensor:
        if self.global_step == 4:
            die()
        return original(self, *args)

    TrainingModule.training_step = training_step


def main(folder: Path) -> None:
    """Print {task: {ending: digest}} as JSON."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, object]] = {}
    for task, config in CONFIGS.items():
        found[task] = {}
        for ending in ("left alone", "killed", "another seed"):
            place = folder / task / ending.replace(" ", "-")
            place.mkdir(parents=True)
            os.chdir(place)
            run = config.with_overrides(seed=1) if ending == "another seed" else config
            if ending == "killed":
                if in_child(kill_in_the_second_epoch, run) != signal.SIGKILL:
                    raise SystemExit(f"{task} was not killed")
                run = run.with_overrides(resume=True)
            in_child(None, run)
            found[task][ending] = digest(place / "run")
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
