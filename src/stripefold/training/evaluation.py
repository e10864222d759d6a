"""How well a model, or what a run left on disk, does on test images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from stripefold.errors import CheckpointError
from stripefold.fold.files import file_info, load_model_
from stripefold.training.build import build_backbone, build_model
from stripefold.training.checkpoint import KEY, model_state, read_checkpoint
from stripefold.training.config import TrainConfig
from stripefold.training.data import Data, ImageSpec, evaluation_loader, load_data
from stripefold.training.results import EvalResult

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


def evaluate(source: str | Path, **overrides: Any) -> EvalResult:
    """Accuracy and loss on the test images of the run that ``source`` comes from.

    Args:
        source: A run's folder (its last checkpoint), a checkpoint, or a ``folded.safetensors``.
        overrides: Options of the run to change, such as ``data``, ``data_dir``, ``batch_size``, ``accelerator``.

    Raises:
        CheckpointError: If the file is missing, damaged, or does not come from a training run.
        ConfigError: If an override is no option.
        DataError: If the test images are missing, or have other classes than the network.
    """
    path = _weights_file(Path(source).expanduser())
    model, config, spec, kind = _load(path, overrides)
    data = load_data(config)
    if len(data.spec.classes) != len(spec.classes):
        raise CheckpointError(
            f"{path} tells {len(spec.classes)} classes apart, {config.data} has {len(data.spec.classes)}; give the "
            "data it was trained on"
        )
    return evaluate_model(model, data, config, kind=kind, source=str(path))


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    last = path / "checkpoints" / "last.ckpt"
    if not last.exists():
        raise CheckpointError(f"{path} holds no checkpoints/last.ckpt; give the folder of a run that finished an epoch")
    return last


def _load(path: Path, overrides: dict[str, Any]) -> tuple[nn.Module, TrainConfig, ImageSpec, str]:
    """The model in a file, the configuration of its run, what its images look like, and what the file is."""
    if path.suffix != ".safetensors":
        checkpoint = read_checkpoint(path)
        config, spec = _about(checkpoint[KEY], overrides, path)
        model = build_model(config, spec)
        try:
            model.load_state_dict(model_state(checkpoint))
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit the model its configuration describes: {error}") from error
        return model, config, spec, "backbone" if config.form == "none" else "attached"
    info = file_info(path)
    config, spec = _about(info.extra, overrides, path)
    folded = info.kind != "attached" and config.form in ("static", "none")
    model = build_backbone(config, spec) if folded else build_model(_without_static(config), spec)
    load_model_(model, path)
    return model, config, spec, info.kind


def _without_static(config: TrainConfig) -> TrainConfig:
    """What is left of ASR beside a dynamic attention after folding: the dynamic attention."""
    return config.with_overrides(form="dynamic") if config.form == "both" else config


def _about(extra: Any, overrides: dict[str, Any], path: Path) -> tuple[TrainConfig, ImageSpec]:
    try:
        # Weights come from the file: nothing is downloaded to be overwritten.
        values = {**extra["config"], "pretrained": False}
        spec = ImageSpec(classes=tuple(extra["classes"]), channels=extra["channels"], size=extra["image_size"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not say which run it comes from; give a file that train wrote") from error
    fixed = {"image_size": spec.size, "channels": spec.channels, "resume": False}
    return TrainConfig(**{**values, **fixed}).with_overrides(**overrides), spec


def evaluate_model(model: nn.Module, data: Data, config: TrainConfig, *, kind: str, source: str) -> EvalResult:
    """One pass over the test images, in eval mode and full precision; the model ends where and how it was.

    Args:
        model: Gives logits (N, classes).
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
        hits, loss, images = _count(model.to(device).eval(), evaluation_loader(data, config), device)
    finally:
        model.to(home).train(was_training)
    seconds = time.perf_counter() - started
    return EvalResult(
        accuracy=hits / images, loss=loss / images, images=images, seconds=seconds, kind=kind, source=source
    )


def _device(config: TrainConfig) -> torch.device:
    if config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if config.accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _count(model: nn.Module, loader: DataLoader[Any], device: torch.device) -> tuple[int, float, int]:
    hits, loss, images = 0, 0.0, 0
    with torch.inference_mode():
        for batch, labels in loader:
            logits = model(batch.to(device)).float()
            target = labels.to(device)
            hits += int((logits.argmax(1) == target).sum())
            loss += float(F.cross_entropy(logits, target, reduction="sum"))
            images += len(labels)
    return hits, loss, images
