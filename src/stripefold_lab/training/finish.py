"""What happens after the last epoch: evaluate, fold, verify, and write it all down."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from stripefold.folding.fold import fold
from stripefold.folding.weight_files import FileKind, save_model
from stripefold_lab.training.data import Data
from stripefold_lab.training.evaluation import evaluate_model
from stripefold_lab.training.record import EpochRecord, best_row
from stripefold_lab.training.results import TrainResult
from stripefold_lab.training.summary import write_summary

if TYPE_CHECKING:
    from stripefold.folding.verify import EquivalenceReport
    from stripefold_lab.training.agreement import DetectorReport
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.task import Task


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
    task = record.task
    example = data.test.first(task.example_images)
    best = best_row(record.rows, task)
    folded, verification = _folded(model, example, task) if config.folds else (model, None)
    kind = "attached" if config.folds or config.keeps_attention else "backbone"
    result = TrainResult(
        run_dir=paths.root,
        config=config,
        model=model,
        folded=folded,
        attached=evaluate_model(model, data, config, kind=kind, source=str(paths.last)),
        deployed=evaluate_model(folded, data, config, kind="folded", source=str(paths.folded)),
        best_score=best[f"val_{task.score.name}"],
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


def _folded(model: nn.Module, example: Tensor, task: Task) -> tuple[nn.Module, EquivalenceReport | DetectorReport]:
    with warnings.catch_warnings():
        # Gates that never moved are named in the summary.
        warnings.filterwarnings("ignore", message=".*never moved.*")
        plain = fold(model, check=False, example=example)
    return plain, task.verify(model, plain, example)


def _save(result_of: nn.Module, path: Path, record: EpochRecord, config: TrainConfig) -> Path:
    """Dynamic attention cannot be folded: such a file says "attached", and a backbone's own says "plain"."""
    kind: FileKind | None = "folded" if config.folds and not config.keeps_attention else None
    return save_model(result_of, path, kind=kind, extra=record.about)
