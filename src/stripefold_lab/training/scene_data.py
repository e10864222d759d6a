"""Annotated images as the loop takes them: squares of one size, with class maps or boxes to match."""

from __future__ import annotations

import functools
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from stripefold_lab.datasets import Scene, Scenes, Shapes
from stripefold_lab.training.data import Data, EvaluationSamples, ImageSpec, TrainingSamples, image_size
from stripefold_lab.training.images import choose
from stripefold_lab.training.transforms import Transform, resize, scale_to_unit

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig

SHAPES_SIZE = 64
SHAPES_COUNTS = (2000, 400)
STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Target = Tensor | dict[str, Tensor]


def load_scenes(
    config: TrainConfig, readers: Mapping[str, str], fitting: Callable[[TrainConfig, int], Fitting]
) -> Data:
    """Scenes as the loop takes them.

    Args:
        config: The run's configuration.
        readers: Name of a reader -> the function that opens a folder as training and test scenes.
        fitting: How a scene becomes what the network takes, for a configuration and a size.

    Raises:
        ConfigError: The images' size must be given.
        DataError: The folder is not of the form that the reader knows.
    """
    reader, _, path = config.data.partition(":")
    size = image_size(config, None if path else SHAPES_SIZE)
    train: Scenes
    test: Scenes
    if path:
        train, test = pkgutil.resolve_name(readers[reader])(Path(path).expanduser())
    else:
        train, test = (Shapes(count, size, seed) for seed, count in enumerate(SHAPES_COUNTS))
    fitted = fitting(config, size)
    augment = functools.partial(_augment, fitted, config.augmentation == "flip")
    return Data(
        train=TrainingSamples(choose(train, config.limit_train), augment, config.seed),
        test=EvaluationSamples(choose(test, config.limit_test), functools.partial(fitted, flip=False, train=False)),
        spec=ImageSpec(classes=("background", *train.classes), channels=3, size=size),
        whole=(train, test),
    )


def _augment(fitting: Fitting, flips: bool, scene: Scene, seed: int) -> tuple[Tensor, Target]:
    return fitting(scene, flip=flips and seed % 2 == 1, train=True)


@dataclass(frozen=True, kw_only=True)
class Fitting(ABC):
    """How a scene becomes what a task's network takes: the longer side is brought to ``size``, the rest padded.

    Attributes:
        size: Side of the square.
    """

    size: int

    def __call__(
        self, scene: Scene, *, flip: bool, train: bool, change: Transform | None = None
    ) -> tuple[Tensor, Target]:
        """Image (3, size, size) and its target.

        Args:
            scene: What a reader gave.
            flip: Whether to mirror it left and right.
            train: Whether it is for training.
            change: What happens to the image (3, h, w) in 0..1 before it is normalised and padded.

        Raises:
            DataError: If the scene lacks what the task needs.
        """
        height, width = scene.image.shape[1:]
        scale = self.size / max(height, width)
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
        image = scale_to_unit(scene.image)
        image = image if inner == (height, width) else resize(inner, image).clamp(0, 1)
        return self.fitted(scene, image if change is None else change(image), flip=flip, train=train)

    @abstractmethod
    def fitted(self, scene: Scene, image: Tensor, *, flip: bool, train: bool) -> tuple[Tensor, Target]:
        """The same of an image (3, h, w) in 0..1 that is resized and not yet padded."""


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
