"""Annotated images as the loop takes them: squares of one size, with class maps or boxes to match."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from stripefold_lab.datasets import Scene, Shapes
from stripefold_lab.training.data import Data, EvaluationSamples, ImageSpec, TrainingSamples, image_size
from stripefold_lab.training.images import choose
from stripefold_lab.training.transforms import Transform, resize, scale_to_unit

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.scene_task import SceneTask

SHAPES_SIZE = 64
SHAPES_COUNTS = (2000, 400)
SceneFit = Callable[..., tuple[Tensor, Any]]


def load_scenes(config: TrainConfig, task: SceneTask) -> Data:
    """Scenes as the loop takes them.

    Args:
        config: The run's configuration.
        task: Opens folders, and says how a scene becomes what its network takes.

    Raises:
        ConfigError: The images' size must be given.
        DataError: The folder is not of the form that its reader knows.
    """
    reader, _, path = config.data.partition(":")
    size = image_size(config, None if path else SHAPES_SIZE)
    if path:
        train, test = pkgutil.resolve_name(task.readers[reader])(Path(path).expanduser())
    else:
        train, test = [Shapes(count, size, seed) for seed, count in enumerate(SHAPES_COUNTS)]
    fit = functools.partial(task.fit, config=config, size=size)
    augment = functools.partial(_augment, fit, size, config.augmentation == "flip")
    return Data(
        train=TrainingSamples(choose(train, config.limit_train), augment, config.seed),
        test=EvaluationSamples(choose(test, config.limit_test), functools.partial(_prepare, fit, size)),
        spec=ImageSpec(classes=("background", *train.classes), channels=3, size=size),
        whole=(train, test),
    )


def _augment(fit: SceneFit, size: int, flips: bool, scene: Scene, seed: int) -> tuple[Tensor, Any]:
    return fit(scene, bring_to(scene.image, size), flip=flips and seed % 2 == 1, train=True)


def _prepare(fit: SceneFit, size: int, scene: Scene, change: Transform | None = None) -> tuple[Tensor, Any]:
    image = bring_to(scene.image, size)
    return fit(scene, image if change is None else change(image), flip=False, train=False)


def bring_to(image: Tensor, size: int) -> Tensor:
    """Bytes (3, H, W) as (3, h, w) in 0..1, whose longer side is ``size``."""
    height, width = image.shape[1:]
    scale = size / max(height, width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    image = scale_to_unit(image)
    return image if inner == (height, width) else resize(inner, image).clamp(0, 1)


def resize_nearest(values: Tensor, size: Any) -> Tensor:
    """Bytes (..., H, W) at another size, no value mixed with another."""
    if tuple(values.shape[-2:]) == tuple(size) or not values.numel():
        return values if values.numel() else values.new_zeros(*values.shape[:-2], *size)
    flat = values.reshape(1, -1, *values.shape[-2:]).float()
    return F.interpolate(flat, size=tuple(size), mode="nearest-exact")[0].reshape(*values.shape[:-2], *size).to(values)


def pad(values: Tensor, size: int, fill: float) -> Tensor:
    """(..., h, w) with ``fill`` to the right and below, up to (..., size, size)."""
    height, width = values.shape[-2:]
    return F.pad(values, (0, size - width, 0, size - height), value=fill)
