"""Images with a class each as the loop takes them: of one size, augmented by place in the run."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stripefold_lab.training import transforms
from stripefold_lab.training.data import Data, EvaluationSamples, ImageSpec, TrainingSamples, image_size
from stripefold_lab.training.images import choose, keep
from stripefold_lab.training.preprocessing import Preprocessing
from stripefold_lab.training.sources import open_source

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig


def load_labelled(config: TrainConfig) -> Data:
    """Both halves of the data set that a configuration names.

    Args:
        config: The run's configuration.

    Raises:
        ConfigError: If the images' size must be given.
        DataError: If it is missing, empty or of the wrong form.
    """
    source = open_source(config)
    size = image_size(config, source.image_size)
    channels = config.channels or source.channels
    spec = ImageSpec(classes=source.classes, channels=channels, size=size)
    preprocessing = Preprocessing.read(config.preprocessing)
    statistics = preprocessing.normalisation(source.mean, source.std, channels)
    after: transforms.Transform = functools.partial(transforms.normalise, *statistics)
    pixels = preprocessing.pixels(size, channels, source.middle)
    if preprocessing.interpolation is not None and config.augmentation == "none":
        train_steps = [pixels, after]  # what calibrates a network looks like what tests it
    else:
        train_steps = [transforms.scale_to_unit, functools.partial(transforms.to_channels, channels)]
        train_steps += [*_augmentation(config.augmentation, size), after]
    train, test = choose(source.train, config.limit_train), choose(source.test, config.limit_test)
    if config.cache:
        train, test = keep(train), keep(test)
    return Data(
        train=TrainingSamples(train, functools.partial(_augment, transforms.compose(train_steps)), config.seed),
        test=EvaluationSamples(test, functools.partial(_prepare, pixels, after)),
        spec=spec,
        whole=(source.train, source.test),
        preparation=preprocessing.described(size, source.middle, statistics),
    )


def _augment(transform: transforms.Transform, sample: tuple[Tensor, int], seed: int) -> tuple[Tensor, int]:
    # Nothing else reads this generator's state: a training step seeds it anew.
    torch.default_generator.manual_seed(seed)
    return transform(sample[0]), sample[1]


def _prepare(
    pixels: transforms.Transform,
    normalise: transforms.Transform,
    sample: tuple[Tensor, int],
    change: transforms.Transform | None = None,
) -> tuple[Tensor, int]:
    image = pixels(sample[0])
    return normalise(image if change is None else change(image)), sample[1]


def _augmentation(name: str, size: int) -> list[transforms.Transform]:
    if name == "resized-crop":
        return [functools.partial(transforms.random_resized_crop, size), transforms.random_flip]
    steps: list[transforms.Transform] = [functools.partial(transforms.fit, size)]
    if name in ("shift", "crop-flip"):
        # 4 pixels of 32, as in the CIFAR recipe.
        steps.append(functools.partial(transforms.random_crop, max(1, size // 8)))
    if name in ("flip", "crop-flip"):
        steps.append(transforms.random_flip)
    return steps
