"""The tasks, and what each is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.task import Task


@dataclass(frozen=True)
class TaskMetrics:
    """What a task is judged by.

    Attributes:
        score: The measure that decides which epoch was the best.
        measures: What an evaluation gives, the score last.
    """

    score: str
    measures: tuple[str, ...]


TASKS: dict[str, TaskMetrics] = {
    "classification": TaskMetrics("accuracy", ("loss", "accuracy")),
    "segmentation": TaskMetrics("miou", ("loss", "pixel_accuracy", "miou")),
    # Torchvision's detectors give no loss in eval mode.
    "detection": TaskMetrics("map50", ("map", "map50")),
}
WORDS = {
    "accuracy": "accuracy",
    "loss": "loss",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "map50": "mAP50",
    "map": "mAP",
}


def make_task(config: TrainConfig, model: nn.Module, *, classes: int, steps_per_epoch: int, group: Any = None) -> Task:
    """The LightningModule that trains ``model`` for a run's task.

    Args:
        config: The run's configuration.
        model: The network.
        classes: How many classes there are, the background of segmentation and detection among them.
        steps_per_epoch: Steps of one epoch.
        group: The processes that share every batch; None is this one alone.
    """
    from stripefold_lab.training.detection import Detection
    from stripefold_lab.training.segmentation import Segmentation
    from stripefold_lab.training.task import Classification

    kinds: dict[str, type[Task]] = {
        "classification": Classification, "segmentation": Segmentation, "detection": Detection
    }  # fmt: skip
    return kinds[config.task](model, config, classes=classes, steps_per_epoch=steps_per_epoch, group=group)


def shown(measure: str, value: float) -> str:
    """A measure as text: a loss as it is, everything else in per cent.

    >>> shown("miou", 0.5), shown("loss", 0.5)
    ('50.00%', '0.5000')
    """
    return f"{value:.4f}" if measure == "loss" else f"{value:.2%}"
