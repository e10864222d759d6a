"""How well a model, or what a run left on disk, does on test images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.errors import CheckpointError
from stripefold_lab.training.config import TrainConfig
from stripefold_lab.training.data import Data, evaluation_loader
from stripefold_lab.training.loading import load_run
from stripefold_lab.training.results import EvalResult
from stripefold_lab.training.tasks import get_task


def evaluate(source: str | Path, /, **overrides: Any) -> EvalResult:
    """The task's measures on the test images of the run that ``source`` comes from.

    Args:
        source: A run's folder (its last checkpoint), a checkpoint, or a ``folded.safetensors``.
        overrides: Options of the run to change, such as ``data``, ``data_dir``, ``batch_size``, ``accelerator``.

    Raises:
        CheckpointError: If the file is missing, damaged, does not come from a training run, or was trained on
            another number of classes than the data has.
        ConfigError: If an override is no option.
        DataError: If the test images are missing, or the data is not what the run was trained on; of data that is asked
            for in ``overrides`` the classes have to be the same.
    """
    run = load_run(source, **overrides)
    data = run.open_data()
    if len(data.spec.classes) != len(run.spec.classes):
        raise CheckpointError(
            f"{run.path} was trained on {len(run.spec.classes)} classes, {run.config.data} has "
            f"{len(data.spec.classes)}; give the data it was trained on"
        )
    run.check_data(data, asked="data" in overrides)
    return evaluate_model(run.model, data, run.config, kind=run.kind, source=str(run.path))


def evaluate_model(model: nn.Module, data: Data, config: TrainConfig, *, kind: str, source: str) -> EvalResult:
    """One pass over the test images, in eval mode and full precision; the model ends where and how it was.

    Args:
        model: The network of the run's task.
        data: The data set.
        config: Batch size, workers, device.
        kind: What the model is, for the result.
        source: Where it comes from, for the result.
    """
    device = _device(config)
    parameter = next(model.parameters(), None)
    home = torch.device("cpu") if parameter is None else parameter.device
    was_training = model.training
    started = time.perf_counter()
    try:
        measures, images = _measure(model.to(device).eval(), data, config, device)
    finally:
        model.to(home).train(was_training)
    seconds = time.perf_counter() - started
    return EvalResult(
        measures=measures, task=config.task, images=images, seconds=seconds, kind=kind, source=source,
        preparation=data.preparation,
    )  # fmt: skip


def _device(config: TrainConfig) -> torch.device:
    if config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if config.accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _measure(model: nn.Module, data: Data, config: TrainConfig, device: torch.device) -> tuple[dict[str, float], int]:
    meter, images = get_task(config.task).meter(len(data.spec.classes)), 0
    with torch.inference_mode():
        for batch, targets in evaluation_loader(data, config):
            meter.update(model(batch.to(device)), targets.to(device) if isinstance(targets, Tensor) else targets)
            images += len(batch)
        return meter.compute(), images
