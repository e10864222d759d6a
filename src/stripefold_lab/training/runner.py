"""``train``: one run from its configuration to its folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stripefold.distributed import broadcast_from_rank0, gathered, run_on_all_ranks
from stripefold.errors import CheckpointError, ConfigError, DataError, TrainingError
from stripefold.integrations.lightning import StripeCallback
from stripefold_lab.processes import ProcessRank, joined, waiting_group
from stripefold_lab.stdout import lossy_stdout
from stripefold_lab.training.batch_noise import BatchNoise
from stripefold_lab.training.build import build_model
from stripefold_lab.training.callbacks import check_observable, run_observer
from stripefold_lab.training.checkpoint import write_failure
from stripefold_lab.training.data import Data, evaluation_loader, load_data, training_loader
from stripefold_lab.training.fingerprint import describe, differing_data
from stripefold_lab.training.finish import finish
from stripefold_lab.training.launch import backend_of, place_of, synchronised
from stripefold_lab.training.loading import load_run
from stripefold_lab.training.loggers import logger_name, run_loggers
from stripefold_lab.training.noise_hooks import batch_norms, training_noise
from stripefold_lab.training.paths import RunPaths, claimed_run, write_config
from stripefold_lab.training.record import EpochRecord
from stripefold_lab.training.resume import check_resumable, restore_best
from stripefold_lab.training.tasks import get_task
from stripefold_lab.training.trainer import make_trainer, plain_errors, quiet
from stripefold_lab.training.training_module import TrainingModule

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.results import TrainResult

CALIBRATION_IMAGES = 512
"""Enough to know the means and variances of a BatchNorm to a few per cent."""


def train(config: TrainConfig) -> TrainResult:
    """Train, fold, verify, and leave one folder with everything.

    A run that was killed is taken up with ``resume``; on a CPU it ends with the very bits of a run left alone.

    With several devices or nodes every process calls this, as torchrun and SLURM have them do. They share each batch,
    the first one writes, prints and folds, and the others wait for it.

    Args:
        config: The run's configuration.

    Returns:
        What the run left, and the trained and the folded model; the same on every process.

    Raises:
        ConfigError: If an option does not fit, or ``run_dir`` holds another run.
        DataError: If the data is missing or of the wrong form.
        AttachError: If the attention does not suit the network.
        BranchError: If the branch blocks do not.
        CheckpointError: If the checkpoint to resume from is damaged.
        TrainingError: If the loss is not finite, the disk is full, or another process has ended; the last good
            checkpoint is kept.
        KeyboardInterrupt: If Ctrl-C was pressed; the last checkpoint is kept.
    """
    place = place_of(config)
    with (
        _threads(config.threads),
        torch.random.fork_rng(devices=[]),
        joined(place, backend=backend_of(config), timeout=config.timeout) as group,
        ExitStack() as held,
    ):
        return _train(config, place, group, held)


def _train(config: TrainConfig, place: ProcessRank, group: Any, held: ExitStack) -> TrainResult:
    waiting = waiting_group(group)
    data = _data(config, place, group)
    loaders = [make(data, config, place) for make in (training_loader, evaluation_loader)]
    model = run_on_all_ranks(lambda: _model(data, config), group, TrainingError)
    about = run_on_all_ranks(lambda: describe(data), group, DataError)
    # The first process holds the run's folder until everything is written.
    paths = broadcast_from_rank0(lambda: held.enter_context(claimed_run(config)), group, ConfigError)
    behind = _epochs_behind(config, paths, about, group)
    broadcast_from_rank0(lambda: _begin(config, paths), group, TrainingError)
    record = EpochRecord(
        paths,
        {**about, "config": config.with_overrides(resume=False, extend=False).to_dict()},
        epochs=config.epochs,
        task=get_task(config.task),
        lines=_progress(config) == "lines",
    )
    started = time.perf_counter()
    module = TrainingModule(
        synchronised(model, config, place), config, classes=len(data.spec.classes),
        steps_per_epoch=len(loaders[0]), group=group,
    )  # fmt: skip
    _fit(module, loaders, record, run_observer(data, config, paths.stripes), place, behind=behind)
    seconds = time.perf_counter() - started
    epochs_run = len(record.rows) - behind
    finished: list[TrainResult] = []

    def end() -> TrainResult:
        trained = _trained(model, paths, place)
        finished.append(finish(trained, data, config, record, seconds=seconds, epochs_run=epochs_run))
        return replace(finished[0], model=nn.Identity(), folded=nn.Identity())

    told = broadcast_from_rank0(end, waiting, TrainingError)
    return finished[0] if finished else _with_models(told)


def _with_models(told: TrainResult) -> TrainResult:
    """What the first process has finished, with the networks from its files: they may be large, or not pickle."""
    model = load_run(told.last_checkpoint).model.eval()
    folded = load_run(told.folded_file).model.eval() if told.config.folds else model
    return replace(told, model=model, folded=folded)


def _data(config: TrainConfig, place: ProcessRank, group: Any) -> Data:
    """The data set; where it may have to be downloaded, one process of a machine does so before the others look."""
    if config.download and place.local_rank == 0:
        run_on_all_ranks(lambda: load_data(config), group, DataError)
    elif config.download:
        run_on_all_ranks(lambda: None, group, DataError)
    return run_on_all_ranks(lambda: load_data(config), group, DataError)


def _model(data: Data, config: TrainConfig) -> nn.Module:
    model = build_model(config, data.spec, images=_calibration_images(data, config))
    check_observable(model, data, config)
    logger_name(config)  # refuses one that is not installed
    if config.batch_noise:
        batch_norms(model)  # refuses a network that cannot take it, before anything is written
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def _trained(model: nn.Module, paths: RunPaths, place: ProcessRank) -> nn.Module:
    """The trained model, in eval mode, on the CPU.

    One that was trained over several processes may be in parts, or have other BatchNorms: it is read from its file.
    """
    trained = model if place.world == 1 else load_run(paths.last).model
    return trained.cpu().eval()


def _calibration_images(data: Data, config: TrainConfig) -> Tensor | None:
    """Training images (N, C, H, W) for branch blocks that start as the convolutions they stand for."""
    if config.branch is None or config.init == "paper":
        return None
    count = min(CALIBRATION_IMAGES, len(data.train))
    return torch.stack([data.train[0, index][0] for index in range(count)])


def _epochs_behind(config: TrainConfig, paths: RunPaths, about: dict[str, Any], group: Any) -> int:
    """How many epochs the run to be resumed has behind it, once it is sure to be this run, on the same data."""
    behind = run_on_all_ranks(lambda: check_resumable(config, paths, about), group, CheckpointError)
    found = gathered((behind, about), group, CheckpointError)
    if len({epochs for epochs, _ in found}) > 1:
        raise ConfigError(
            f"the processes find different checkpoints in {paths.root} (epochs behind them: "
            f"{[epochs for epochs, _ in found]}): run_dir has to be one folder that all machines see"
        )
    for rank, (_, other) in enumerate(found):
        changed = differing_data(found[0][1], other)
        if changed is not None:
            raise DataError(f"process {rank} finds other data than process 0 in {config.data}: {changed}")
    return behind


def _begin(config: TrainConfig, paths: RunPaths) -> None:
    """Bring the files of a run that is resumed to where its last checkpoint is."""
    if not paths.last.exists():
        return
    try:
        restore_best(paths, f"val_{get_task(config.task).score.name}")
        if config.extend:
            write_config(config, paths)
    except OSError as error:
        raise TrainingError(write_failure(paths.root, error)) from error


def _progress(config: TrainConfig) -> str:
    if config.progress != "auto":
        return config.progress
    return "bar" if sys.stdout is not None and sys.stdout.isatty() else "lines"


def _fit(
    module: TrainingModule,
    loaders: list[Any],
    record: EpochRecord,
    observer: StripeCallback | None,
    place: ProcessRank,
    *,
    behind: int,
) -> None:
    config, last, steps = module.config, record.paths.last, behind * len(loaders[0])
    noise = training_noise(module.model, BatchNoise.read(config.batch_noise), config.seed)
    logged = run_loggers(config, record.paths, place, behind=steps)
    with quiet(), plain_errors(record.paths), lossy_stdout(), noise as extra, logged as loggers:
        trainer = make_trainer(
            config,
            [record, *([observer] if observer else []), *extra],
            place,
            loggers=loggers,
            root=record.paths.root,
            bar=place.first and _progress(config) == "bar",
        )
        training, test = loaders
        trainer.fit(module, training, test, ckpt_path=str(last) if last.exists() else None)
    if place.first:
        record.write_table()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
