"""``train``: one run from its configuration to its folder."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as lightning
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor, nn

from stripefold.errors import ConfigError, TrainingError
from stripefold.training.batch_noise import BatchNoise
from stripefold.training.build import build_model
from stripefold.training.checkpoint import SafeCheckpointIO, read_checkpoint, write_failure
from stripefold.training.data import Data, evaluation_loader, load_data, training_loader
from stripefold.training.finish import finish
from stripefold.training.noisy import batch_norms, training_noise
from stripefold.training.observing import StripeCallback, check_observable, run_observer
from stripefold.training.paths import RunPaths, open_run
from stripefold.training.record import EpochRecord
from stripefold.training.tasks import make_task

if TYPE_CHECKING:
    from stripefold.training.config import TrainConfig
    from stripefold.training.results import TrainResult

# Lightning's advice about things this room decides on purpose.
QUIET = (
    r".*does not have many workers.*",  # `workers` is the user's choice
    r".*available but not used.*",  # `accelerator` is too
    r".*The number of training batches .* is smaller than the logging interval.*",  # we log per epoch
    r".*Checkpoint directory .* exists and is not empty.*",  # it is the run's own
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning's import of torch's pytree
)

CALIBRATION_IMAGES = 512
"""Enough to know the means and variances of a BatchNorm to a few per cent."""


def train(config: TrainConfig) -> TrainResult:
    """Train, fold, verify, and leave one folder with everything.

    A run that was killed is taken up with ``resume``; on a CPU it ends with the very bits of a run left alone.

    Args:
        config: The run's configuration.

    Returns:
        What the run left, and the trained and the folded model.

    Raises:
        ConfigError: If an option does not fit, or ``run_dir`` holds another run.
        DataError: If the data is missing or of the wrong form.
        AttachError: If the attention does not suit the network.
        BranchError: If the branch blocks do not.
        CheckpointError: If the checkpoint to resume from is damaged.
        TrainingError: If the loss is not finite, or the disk is full; the last good checkpoint is kept.
        KeyboardInterrupt: If Ctrl-C was pressed; the last checkpoint is kept.
    """
    data = load_data(config)
    with _threads(config.threads), torch.random.fork_rng(devices=[]):
        model = build_model(config, data.spec, images=_calibration_images(data, config))
        check_observable(model, data, config)
        if config.batch_noise:
            batch_norms(model)  # refuses a network that cannot take it, before anything is written
        paths = open_run(config)
        observer = run_observer(data, config, paths.stripes)
        record = EpochRecord(
            paths,
            {**_about(data), "config": config.with_overrides(resume=False).to_dict()},
            epochs=config.epochs,
            task=config.task,
            lines=_progress(config) == "lines",
            tensorboard=config.tensorboard,
        )
        behind = _epochs_behind(paths)
        started = time.perf_counter()
        _fit(model, data, config, record, observer)
        seconds = time.perf_counter() - started
        epochs_run = len(record.rows) - behind
        return finish(model.cpu().eval(), data, config, record, seconds=seconds, epochs_run=epochs_run)


def _calibration_images(data: Data, config: TrainConfig) -> Tensor | None:
    """Training images (N, C, H, W) for branch blocks that start as the convolutions they stand for."""
    if config.branch is None or config.init == "paper":
        return None
    count = min(CALIBRATION_IMAGES, len(data.train))
    return torch.stack([data.train[0, index][0] for index in range(count)])


def _about(data: Data) -> dict[str, Any]:
    return {"classes": list(data.spec.classes), "channels": data.spec.channels, "image_size": data.spec.size}


def _epochs_behind(paths: RunPaths) -> int:
    """How many epochs the run to be resumed has behind it; reading this also proves its checkpoint sound."""
    if not paths.last.exists():
        return 0
    return len(read_checkpoint(paths.last)["callbacks"][EpochRecord.__qualname__]["rows"])


def _progress(config: TrainConfig) -> str:
    if config.progress != "auto":
        return config.progress
    return "bar" if sys.stdout.isatty() else "lines"


def _fit(
    model: nn.Module, data: Data, config: TrainConfig, record: EpochRecord, observer: StripeCallback | None
) -> None:
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    loader = training_loader(data, config)
    steps = len(loader)
    task = make_task(config, model, classes=len(data.spec.classes), steps_per_epoch=steps)
    last = record.paths.last
    noise = training_noise(model, BatchNoise.read(config.batch_noise), config.seed)
    with _quiet(), _plain_errors(record.paths), noise as extra:
        trainer = _trainer(config, [record, *([observer] if observer else []), *extra], record.paths.root)
        trainer.fit(task, loader, evaluation_loader(data, config), ckpt_path=str(last) if last.exists() else None)
    record.write_table()


def _trainer(config: TrainConfig, callbacks: list[lightning.Callback], root: Path) -> lightning.Trainer:
    bar = _progress(config) == "bar"
    try:
        return lightning.Trainer(
            max_epochs=config.epochs,
            accelerator=config.accelerator,
            devices=1,
            precision="32-true" if config.precision == "32" else config.precision,
            gradient_clip_val=config.gradient_clip or None,
            callbacks=[*callbacks, *([TQDMProgressBar(refresh_rate=10)] if bar else [])],
            plugins=[SafeCheckpointIO()],
            logger=False,
            enable_progress_bar=bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=root,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(
            f"accelerator {config.accelerator!r} with precision {config.precision} cannot be used here: {error}"
        ) from error


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning without its greetings; its log levels are put back."""
    logger = logging.getLogger("pytorch_lightning")
    fabric = logging.getLogger("lightning.fabric")
    levels = logger.level, fabric.level
    logger.setLevel(logging.ERROR)
    fabric.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in QUIET:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(levels[0])
        fabric.setLevel(levels[1])


@contextmanager
def _plain_errors(paths: RunPaths) -> Iterator[None]:
    """Turn what Lightning and the system throw into errors that say what to do.

    On Ctrl-C and on SIGTERM Lightning ends the whole process (``sys.exit``) and leaves further Ctrl-C ignored; neither
    is a library's place.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        kept = f"go on with resume from {paths.last}" if paths.last.exists() else "no epoch was finished"
        if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt(f"stopped by Ctrl-C; {kept}") from error
        raise TrainingError(f"stopped from outside ({type(error).__name__}); {kept}") from error
    except OSError as error:
        raise TrainingError(write_failure(paths.root / (error.filename or ""), error)) from error
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)
