"""The callback that keeps a run's record: one row per epoch, the last and the best checkpoint."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from typing import TYPE_CHECKING, Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Checkpoint

from stripefold.atomic import write_text
from stripefold.errors import TrainingError
from stripefold_lab.stdout import time_left
from stripefold_lab.training.checkpoint import KEY, write_failure

if TYPE_CHECKING:
    from stripefold_lab.training.paths import RunPaths
    from stripefold_lab.training.task import Task

MetricsRow = dict[str, float]


class EpochRecord(Checkpoint):
    """Keeps the epochs' rows inside the checkpoint, so that a resumed run's table has every epoch once.

    Lightning's own CSV logger empties the file of the run that is resumed, and its ModelCheckpoint forgets the best
    score when the run's folder was moved.

    Args:
        paths: Where things go.
        about: What the checkpoint says about itself; plain values.
        task: What is trained, which decides about the columns.
        epochs: How many epochs the run has, for the lines.
        lines: Whether to print a line per epoch.
    """

    def __init__(
        self,
        paths: RunPaths,
        about: dict[str, Any],
        *,
        epochs: int,
        task: Task,
        lines: bool = False,
    ) -> None:
        self.paths = paths
        self.about = about
        self.task = task
        self.epochs = epochs
        self.lines = lines
        self.rows: list[MetricsRow] = []
        self._started = 0.0
        self._resumed = 0

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of the run that is resumed."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        self._resumed = len(self.rows)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put into the checkpoint what it is."""
        checkpoint[KEY] = self.about

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Add the row; save the best and the last checkpoint; write table and line.

        Raises:
            TrainingError: If a measure is not finite (nothing is saved then), or a file cannot be written.
        """
        row = self._row(trainer)
        wrong = [measure.word for measure in self.task.measures if not math.isfinite(row[f"val_{measure.name}"])]
        if wrong:
            raise TrainingError(
                f"the test {wrong[0]} is not finite after epoch {row['epoch']:.0f}, step {row['step']:.0f}: the "
                "last good checkpoint is kept; lower learning_rate, or set warmup_epochs or gradient_clip"
            )
        self.rows.append(row)
        # The last one first: a run that is killed before the best one is written makes it from the last.
        trainer.save_checkpoint(self.paths.last)
        if best_row(self.rows, self.task) is row:
            trainer.save_checkpoint(self.paths.best)
        if trainer.is_global_zero:
            self.write_table()
            self._log(row)

    def _row(self, trainer: lightning.Trainer) -> MetricsRow:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "train_loss": metrics["train_loss"],
            **{name: metrics[name] for name in self._measured},
            "seconds": time.perf_counter() - self._started,
        }

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns."""
        return ("epoch", "step", "learning_rate", "train_loss", *self._measured, "seconds")

    @property
    def _measured(self) -> list[str]:
        return [f"val_{measure.name}" for measure in self.task.measures]

    def write_table(self) -> None:
        """Write the whole table anew.

        Raises:
            TrainingError: If it cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)
        try:
            write_text(self.paths.metrics, text.getvalue())
        except OSError as error:
            raise TrainingError(write_failure(self.paths.metrics, error)) from error

    def _log(self, row: MetricsRow) -> None:
        if self.lines and sys.stdout is not None:
            width = len(str(self.epochs))
            told = [f"{each.word} {each.shown(row[f'val_{each.name}'])}" for each in self.task.measures]
            told = [f"test {words}" if words.startswith("loss") else words for words in told]
            mine = self.rows[self._resumed :]
            ahead = (self.epochs - row["epoch"]) * sum(each["seconds"] for each in mine) / len(mine)
            left = f", {time_left(ahead)}" if ahead > 1 else ""
            sys.stdout.write(
                f"epoch {row['epoch']:{width}.0f}/{self.epochs}  train loss {row['train_loss']:.4f}  "
                f"{'  '.join(told)}  rate {row['learning_rate']:.4g}  {row['seconds']:.1f} s{left}\n"
            )
            sys.stdout.flush()


def best_row(rows: list[MetricsRow], task: Task) -> MetricsRow:
    """The first epoch of the highest score on the test images.

    Args:
        rows: At least one.
        task: Decides what the score is.
    """
    score = f"val_{task.score.name}"
    return max(rows, key=lambda row: row[score])
