"""What a training run and an evaluation give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stripefold_lab.training.tasks import get_task

if TYPE_CHECKING:
    from torch import nn

    from stripefold_lab.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """How well a model does on a data set.

    Attributes:
        measures: Classification: ``loss`` (mean cross-entropy in nats) and ``accuracy`` (share of images whose largest
            logit is the right class); segmentation: ``loss``, ``miou`` and ``pixel_accuracy``, over the pixels that
            count; detection: ``map50`` and ``map``, COCO's. All but the loss lie in 0 to 1.
        task: ``classification``, ``segmentation`` or ``detection``.
        images: How many images were looked at.
        seconds: Wall-clock time of the pass.
        kind: What was evaluated: ``attached``, ``backbone``, ``plain``, ``folded``, ``fused`` or ``baked``.
        source: The file that was evaluated.
        preparation: How the images were prepared, in words; of classification.
    """

    measures: Mapping[str, float]
    task: str
    images: int
    seconds: float
    kind: str
    source: str
    preparation: str = ""

    @property
    def score(self) -> float:
        """The measure that tells a task's models apart: accuracy, mIoU or mAP50."""
        return self.measures[get_task(self.task).score.name]

    @property
    def accuracy(self) -> float:
        """Share of images, or of pixels, of the right class, 0 to 1; a detector has none (KeyError)."""
        return self.measures[get_task(self.task).accuracy]

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; a detector has none (KeyError)."""
        return self.measures["loss"]

    def __str__(self) -> str:
        measures = reversed(get_task(self.task).measures)
        told = [f"{measure.word} {measure.shown(self.measures[measure.name])}" for measure in measures]
        return f"{', '.join(told)}, {self.images} images in {self.seconds:.1f} s"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        run_dir: The folder of the run.
        config: The resolved configuration.
        model: The trained model of the last epoch, attached, in eval mode, on the CPU.
        folded: The folded model; the very ``model`` where nothing can be folded (``form`` dynamic or none).
        attached: Evaluation of ``model`` on the test images.
        deployed: Evaluation of ``folded`` on the same images.
        best_score: Highest score on the test images over the epochs (accuracy, mIoU or mAP50, by the task); chosen by
            these images, so it flatters.
        best_epoch: Epoch (from 1) of it.
        verification: The equivalence report of folding; None where nothing was folded.
        example: A batch of test images, (N, C, H, W).
        seconds: Wall-clock time of the training part of this process.
        epochs_run: Epochs this process ran (fewer than ``config.epochs`` after a resume).
        last_checkpoint: Checkpoint of the last epoch.
        best_checkpoint: Checkpoint of the best epoch.
        folded_file: ``folded.safetensors``.
        summary_file: The summary to read.
        metrics_file: One row per epoch, CSV.
    """

    run_dir: Path
    config: TrainConfig
    model: nn.Module
    folded: nn.Module
    attached: EvalResult
    deployed: EvalResult
    best_score: float
    best_epoch: int
    verification: Any
    example: Any
    seconds: float
    epochs_run: int
    last_checkpoint: Path
    best_checkpoint: Path
    folded_file: Path
    summary_file: Path
    metrics_file: Path

    def to_dict(self) -> dict[str, Any]:
        """What a program reads of it, as JSON can hold it; the files by their paths."""
        files = ("run_dir", "folded_file", "last_checkpoint", "best_checkpoint", "summary_file", "metrics_file")
        return {
            "task": self.attached.task,
            "measures": {"attached": dict(self.attached.measures), "folded": dict(self.deployed.measures)},
            "images": self.deployed.images,
            "best": {"score": self.best_score, "epoch": self.best_epoch},
            "verification": None if self.verification is None else asdict(self.verification),
            "seconds": self.seconds,
            "epochs_run": self.epochs_run,
            **{name: str(getattr(self, name)) for name in files},
        }
