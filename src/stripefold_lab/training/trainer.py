"""Lightning's trainer, set up for a run: its devices, no greetings, and errors that say what to do."""

from __future__ import annotations

import inspect
import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytorch_lightning as lightning
import torch.distributed as dist
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import LearningRateMonitor, TQDMProgressBar
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from stripefold.distributed import is_lost, lost_text
from stripefold.errors import ConfigError, TrainingError
from stripefold_lab.training.checkpoint import SafeCheckpointIO, write_failure
from stripefold_lab.training.launch import environment_of
from stripefold_lab.training.sharding import Sharded

if TYPE_CHECKING:
    from pathlib import Path

    from pytorch_lightning.loggers import Logger

    from stripefold_lab.processes import ProcessRank
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.paths import RunPaths

# Lightning's advice about things this package decides on purpose.
QUIET = (
    r".*does not have many workers.*",  # `workers` is the user's choice
    r".*available but not used.*",  # `accelerator` is too
    r".*The number of training batches .* is smaller than the logging interval.*",  # we log per epoch
    r".*Checkpoint directory .* exists and is not empty.*",  # it is the run's own
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning's import of torch's pytree
    r".*when logging on epoch level in distributed setting.*",  # a task's measures are merged before they are logged
    r".*The `srun` command is available on your system but is not used.*",  # one process is one process
)


def make_trainer(
    config: TrainConfig,
    callbacks: Sequence[lightning.Callback],
    place: ProcessRank,
    *,
    loggers: Sequence[Logger],
    root: Path,
    bar: bool,
) -> lightning.Trainer:
    """The trainer of a run.

    Args:
        config: The run's configuration.
        callbacks: Those of the run; a bar's and the loggers' come on top.
        place: Of this process among those of the run.
        loggers: Where the measures and the rate go.
        root: The run's folder.
        bar: Whether a progress bar is shown.

    Raises:
        ConfigError: If accelerator, precision and number of devices cannot be had here.
    """
    shown = [*([TQDMProgressBar(refresh_rate=10)] if bar else []), *([LearningRateMonitor("epoch")] if loggers else [])]
    try:
        trainer = lightning.Trainer(
            max_epochs=config.epochs,
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=_strategy(config, place),
            precision="32-true" if config.precision == "32" else config.precision,
            gradient_clip_val=config.gradient_clip or None,
            callbacks=[*callbacks, *shown],
            plugins=[SafeCheckpointIO(), environment_of(place)],
            logger=list(loggers),
            enable_progress_bar=bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=root,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        many = f" on {config.devices} devices" if config.devices > 1 else ""
        raise ConfigError(
            f"accelerator {config.accelerator!r} with precision {config.precision}{many} cannot be used here: {error}"
        ) from error
    if place.world > 1:
        _leave_signals(trainer)
    return trainer


def _leave_signals(trainer: Any) -> None:
    """Let SIGTERM end one of several processes at once, wherever it is; the kernel then closes its connections.

    Lightning's handler asks all processes to take part in a broadcast, which they do not while they are in another
    exchange: both then wait until the timeout. What the others find closed ends them within seconds, whichever exchange
    they are in, and files are whole however a process ends.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def _strategy(config: TrainConfig, place: ProcessRank) -> Any:
    if place.world == 1:
        return "auto"
    timeout = timedelta(seconds=config.timeout)
    if config.strategy == "fsdp":
        return Sharded(place.world, timeout)
    # Buffers are brought together once an epoch, by `average_buffers_`: every forward would copy the first process's.
    known = inspect.signature(DistributedDataParallel).parameters
    in_forward = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {in_forward: False, "find_unused_parameters": config.strategy == "ddp-unused"}
    return DDPStrategy(timeout=timeout, **options)


@contextmanager
def quiet() -> Iterator[None]:
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
def plain_errors(paths: RunPaths) -> Iterator[None]:
    """Turn what Lightning and the system throw into errors that say what to do.

    On Ctrl-C and on SIGTERM Lightning ends the whole process (``sys.exit``) and leaves further Ctrl-C ignored; neither
    is a library's place.

    Args:
        paths: Those of the run, to say what is kept.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        kept = _kept(paths)
        if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt(f"stopped by Ctrl-C; {kept}") from error
        raise TrainingError(f"stopped from outside ({type(error).__name__}); {kept}") from error
    except RuntimeError as error:
        explained = _explained(error, paths)
        if explained is None:
            raise
        raise explained from error
    except OSError as error:
        raise TrainingError(write_failure(paths.root / (error.filename or ""), error)) from error
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)


def _explained(error: RuntimeError, paths: RunPaths) -> Exception | None:
    """What only several processes meet; None for any other error."""
    if "find_unused_parameters" in str(error):
        return ConfigError(
            "a step leaves parameters of the network out, and every process waits for the gradients of all: set "
            "strategy to ddp-unused"
        )
    if dist.is_available() and dist.is_initialized() and is_lost(error):
        return TrainingError(f"{lost_text(error)}; {_kept(paths)}")
    return None


def _kept(paths: RunPaths) -> str:
    return paths.how_to_go_on if paths.last.exists() else "no epoch was finished"
