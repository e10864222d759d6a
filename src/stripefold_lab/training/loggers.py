"""The loggers of a run: Lightning's own, chosen by the option ``logger``. ``metrics.csv`` is written in any case."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from stripefold.errors import ConfigError, one_line

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

    from stripefold_lab.processes import ProcessRank
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.paths import RunPaths

PROJECT = "stripefold"
_RUN_TAG = "stripefold.run"


def logger_name(config: TrainConfig) -> str:
    """Which logger a run has: what was asked for; ``auto`` is TensorBoard where that is installed.

    Args:
        config: ``logger`` and ``tensorboard`` are read.

    Raises:
        ConfigError: It was asked for, and its package is not installed.
    """
    if config.logger == "auto":
        return "tensorboard" if config.tensorboard and _is_installed("tensorboard") else "csv"
    if config.logger != "csv" and not _is_installed(config.logger):
        raise ConfigError(
            f"logger is {config.logger!r}, which is not installed: pip install {config.logger}, or set logger to csv"
        )
    return config.logger


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # it is being imported, or was taken out
        return sys.modules.get(package) is not None


@contextmanager
def run_loggers(config: TrainConfig, paths: RunPaths, place: ProcessRank, *, behind: int) -> Iterator[list[Logger]]:
    """The loggers that the trainer of a run gets, closed at the end.

    Args:
        config: The run's configuration.
        paths: Those of the run.
        place: Of this process; only the first one logs.
        behind: Steps that a run which is resumed has behind it.

    Raises:
        ConfigError: The logger cannot be started, for want of a key or of a server.
    """
    name = logger_name(config)
    if name == "csv" or not place.first:
        yield []
        return
    logger = _started(name, config, paths, behind)
    try:
        yield [logger]
    except BaseException:
        _close(logger, failed=True)
        raise
    _close(logger, failed=False)


def _started(name: str, config: TrainConfig, paths: RunPaths, behind: int) -> Logger:
    try:
        logger = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[name](paths, behind)
        _ = logger.experiment
        if not behind:  # a run that goes on has told them, and some loggers take no parameter twice
            logger.log_hyperparams(config.to_dict())
    except Exception as error:  # whatever the package raises where it has no key, no server or no room
        offline = "; WANDB_MODE=offline logs into the run's folder" if name == "wandb" else ""
        raise ConfigError(f"logger {name!r} cannot be started: {one_line(error)}{offline}") from error
    return logger


def _tensorboard(paths: RunPaths, behind: int) -> Any:
    from pytorch_lightning.loggers import TensorBoardLogger

    # What a killed run logged past its last checkpoint is hidden.
    return TensorBoardLogger(paths.root, name="", version=paths.tensorboard.name, purge_step=behind + 1)


def _wandb(paths: RunPaths, behind: int) -> Any:
    from pytorch_lightning.loggers import WandbLogger

    # A folder of its is called run-DATE-ID or offline-run-DATE-ID.
    before = sorted((paths.root / "wandb").glob("*run-*-*"), key=lambda path: path.name.partition("run-")[2])
    return WandbLogger(
        name=paths.root.name,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        save_dir=paths.root,
        id=before[-1].name.rpartition("-")[2] if before and behind else None,
    )


def _mlflow(paths: RunPaths, behind: int) -> Any:
    import mlflow
    from pytorch_lightning.loggers import MLFlowLogger

    name, place = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), str(paths.root.resolve())
    before = []
    if behind:
        before = mlflow.search_runs(
            experiment_names=[name], filter_string=f"tags.`{_RUN_TAG}` = {place!r}", max_results=1, output_format="list"
        )
    return MLFlowLogger(
        experiment_name=name,
        run_name=paths.root.name,
        tracking_uri=mlflow.get_tracking_uri(),
        tags={_RUN_TAG: place},
        run_id=before[0].info.run_id if before else None,
    )


def _close(logger: Any, *, failed: bool) -> None:
    """End the logger's run here: W&B would give it to the next one of the process."""
    logger.finalize("failed" if failed else "success")
    if type(logger).__name__ == "WandbLogger":
        logger.experiment.finish(exit_code=int(failed))
