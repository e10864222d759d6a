"""What a training run and an evaluation give back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from stripefold.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """How well a model does on a data set.

    Attributes:
        accuracy: Share of images whose largest logit is the right class, 0 to 1.
        loss: Mean cross-entropy in nats.
        images: How many images were looked at.
        seconds: Wall-clock time of the pass.
        kind: ``attached``, ``folded`` or ``backbone``.
        source: The file that was evaluated.
    """

    accuracy: float
    loss: float
    images: int
    seconds: float
    kind: str
    source: str


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
        best_accuracy: Highest test accuracy over the epochs; chosen by the test images, so it flatters.
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
    best_accuracy: float
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
