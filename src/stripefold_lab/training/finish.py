"""What happens after the last epoch: evaluate, fold, verify, and write it all down."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stripefold.folding.files import FileKind, save_model
from stripefold.folding.fold import fold
from stripefold.folding.verify import EquivalenceReport
from stripefold_lab.training.agreement import DetectorReport, verify_task
from stripefold_lab.training.data import Data
from stripefold_lab.training.evaluation import evaluate_model
from stripefold_lab.training.record import EpochRecord, best_row
from stripefold_lab.training.results import TrainResult
from stripefold_lab.training.summary import write_summary
from stripefold_lab.training.tasks import TASKS

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig

EXAMPLE_IMAGES = 64
EXAMPLE_SCENES = 16
"""Of segmentation and detection, whose networks compute much more for an image."""


def finish(
    model: nn.Module, data: Data, config: TrainConfig, record: EpochRecord, *, seconds: float, epochs_run: int
) -> TrainResult:
    """Fold the trained model, compare, and write ``folded.safetensors`` and the summary.

    Args:
        model: The trained model of the last epoch, in eval mode, on the CPU.
        data: The data set.
        config: The run's configuration.
        record: The run's rows and paths.
        seconds: Wall-clock time of training.
        epochs_run: Epochs run in this process.

    Raises:
        CheckpointError: If the weights cannot be written.
        FoldError: If a gate cannot be folded.
        VerifyError: If the folded model computes something else.
    """
    paths = record.paths
    example = example_batch(data, EXAMPLE_IMAGES if config.task == "classification" else EXAMPLE_SCENES)
    best = best_row(record.rows, config.task)
    folded, verification = _folded(model, example, config.task) if config.folds else (model, None)
    kind = "attached" if config.folds or config.keeps_attention else "backbone"
    result = TrainResult(
        run_dir=paths.root,
        config=config,
        model=model,
        folded=folded,
        attached=evaluate_model(model, data, config, kind=kind, source=str(paths.last)),
        deployed=evaluate_model(folded, data, config, kind="folded", source=str(paths.folded)),
        best_score=best[f"val_{TASKS[config.task].score}"],
        best_epoch=int(best["epoch"]),
        verification=verification,
        example=example,
        seconds=seconds,
        epochs_run=epochs_run,
        last_checkpoint=paths.last,
        best_checkpoint=paths.best,
        folded_file=_save(folded, paths.folded, record, config),
        summary_file=paths.summary,
        metrics_file=paths.metrics,
    )
    write_summary(result, record.rows)
    return result


def example_batch(data: Data, most: int) -> Tensor:
    """The first test images, (N, C, H, W), at most ``most``."""
    return torch.stack([data.test[index][0] for index in range(min(most, len(data.test)))])


def _folded(model: nn.Module, example: Tensor, task: str) -> tuple[nn.Module, EquivalenceReport | DetectorReport]:
    with warnings.catch_warnings():
        # Gates that never moved are named in the summary.
        warnings.filterwarnings("ignore", message=".*never moved.*")
        plain = fold(model, check=False, example=example)
    return plain, verify_task(task, model, plain, example)


def _save(result_of: nn.Module, path: Path, record: EpochRecord, config: TrainConfig) -> Path:
    """Dynamic attention cannot be folded: such a file says "attached", and a backbone's own says "plain"."""
    kind: FileKind | None = "folded" if config.folds and not config.keeps_attention else None
    return save_model(result_of, path, kind=kind, extra=record.about)
