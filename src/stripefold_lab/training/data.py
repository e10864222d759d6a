"""Data sets as the loop takes them: images of one size, augmented by place in the run, in batches."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stripefold.errors import ConfigError, DataError
from stripefold_lab.processes import ALONE, ProcessRank
from stripefold_lab.training import transforms
from stripefold_lab.training.batch_sharding import BatchSharding, ShardedBatches
from stripefold_lab.training.images import LabelledImages, choose, keep
from stripefold_lab.training.loader import EpochLoader
from stripefold_lab.training.preprocessing import Preprocessing
from stripefold_lab.training.scene_data import (
    Fitting,
    PlainScenes,
    TrainingScenes,
    choose_scenes,
    collate,
    open_scenes,
)
from stripefold_lab.training.seeding import EpochSampler, SeedKey, derive_seed
from stripefold_lab.training.sources import DataSource, open_source

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What a network must know about the data.

    Attributes:
        classes: Names of the classes; of segmentation and detection the background first.
        channels: Colour channels.
        size: Side of the images.
    """

    classes: tuple[str, ...]
    channels: int
    size: int

    def example(self, batch: int = 2) -> Tensor:
        """A batch of noise, (batch, channels, size, size), the same every time."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, self.channels, self.size, self.size, generator=generator)


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Augmented images; a key is (epoch, index), and the two and the seed alone decide about the augmentation.

    Args:
        images: Where the images come from.
        transform: From an image as it lies there to the network's input (C, size, size).
        seed: Seed of the run.
    """

    def __init__(self, images: LabelledImages, transform: transforms.Transform, seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SeedKey) -> tuple[Tensor, int]:
        epoch, index = key
        image, label = self.images[index]
        # Nothing else reads this generator's state: a training step seeds it anew.
        torch.default_generator.manual_seed(derive_seed(self.seed, "augmentation", epoch, index))
        return self.transform(image), label


class PlainImages(Dataset[tuple[Tensor, int]]):
    """Images as they are, brought to the network's size.

    Args:
        images: Where the images come from.
        pixels: From an image as it lies there to one of the network's size (C, size, size), in 0..1.
        normalise: From there to the network's input.
        change: What happens to an image in between; None is nothing.
    """

    def __init__(
        self,
        images: LabelledImages,
        pixels: transforms.Transform,
        normalise: transforms.Transform,
        *,
        change: transforms.ImageTransform | None = None,
    ) -> None:
        self.images = images
        self.pixels = pixels
        self.normalise = normalise
        self.change = change

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        image = self.pixels(image)
        return self.normalise(image if self.change is None else self.change(image, index)), label

    def changed(self, change: transforms.ImageTransform | None) -> PlainImages:
        """The same images with something done to each before it is normalised."""
        return PlainImages(self.images, self.pixels, self.normalise, change=change)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Both halves of a data set, ready for loaders.

    Attributes:
        train: Training images.
        test: Test images.
        spec: What the network must know.
        whole: Training and test images as the source gives them, before any limit; what ``fingerprint`` looks at.
        root: Where they lie, which is no part of that.
        preparation: What happens to a test image, in words.
    """

    train: TrainingImages | TrainingScenes
    test: PlainImages | PlainScenes
    spec: ImageSpec
    whole: tuple[Any, ...] = ()
    root: str = ""
    preparation: str = ""


def load_data(config: TrainConfig) -> Data:
    """Open the data set that a configuration names.

    Args:
        config: The run's configuration.

    Raises:
        ConfigError: If there is no such data set, or the images' size must be given.
        DataError: If it is missing, empty or of the wrong form.
    """
    if config.task != "classification":
        return _load_scenes(config)
    source = open_source(config)
    size = config.image_size or source.image_size
    if size is None:
        raise ConfigError(f"image_size is None, and the images of {config.data!r} differ in size; set image_size")
    channels = config.channels or source.channels
    spec = ImageSpec(classes=source.classes, channels=channels, size=size)
    preprocessing = Preprocessing.read(config.preprocessing)
    statistics = preprocessing.normalisation(source.mean, source.std, channels)
    after: transforms.Transform = functools.partial(transforms.normalise, *statistics)
    pixels = preprocessing.pixels(size, channels, source.middle)
    if preprocessing.interpolation is not None and config.augmentation == "none":
        train_steps = [pixels, after]  # what calibrates a network looks like what tests it
    else:
        train_steps = [*_before(source, channels), *_augmentation(config.augmentation, size), after]
    train, test = choose(source.train, config.limit_train), choose(source.test, config.limit_test)
    if config.cache:
        train, test = keep(train), keep(test)
    return Data(
        train=TrainingImages(train, transforms.compose(train_steps), config.seed),
        test=PlainImages(test, pixels, after),
        spec=spec,
        whole=(source.train, source.test),
        root=_root(config),
        preparation=preprocessing.described(size, source.middle, statistics),
    )


def _root(config: TrainConfig) -> str:
    """The folder of the data, in which the names of its files begin."""
    return str(Path(config.data.partition(":")[2] or config.data_dir or "data").expanduser())


def _load_scenes(config: TrainConfig) -> Data:
    train, test, size = open_scenes(config)
    size = config.image_size or size
    if size is None:
        raise ConfigError(f"image_size is None, and the images of {config.data!r} differ in size; set image_size")
    fitting = Fitting(task=config.task, size=size, masks=config.model.startswith("maskrcnn"))
    flips = config.augmentation == "flip"
    return Data(
        train=TrainingScenes(choose_scenes(train, config.limit_train), fitting, flips=flips, seed=config.seed),
        test=PlainScenes(choose_scenes(test, config.limit_test), fitting),
        spec=ImageSpec(classes=("background", *train.classes), channels=3, size=size),
        whole=(train, test),
        root=_root(config),
    )


def _before(source: DataSource, channels: int) -> list[transforms.Transform]:
    same = source.channels == channels
    return [transforms.scale_to_unit, *([] if same else [functools.partial(transforms.to_channels, channels)])]


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


def training_loader(data: Data, config: TrainConfig, place: ProcessRank = ALONE, *, even: bool = True) -> EpochLoader:
    """Batches (N, C, size, size) and (N,) in the order of (seed, epoch), or a process's part of each.

    A last batch of a single image is left out: BatchNorm needs two values per channel.

    Args:
        data: The data set.
        config: The run's configuration.
        place: Of this process among those that share a batch.
        even: Whether all of them get as many batches, by images that do not count (see ``BatchSharding``).

    Raises:
        ConfigError: If there are more processes than images.
        DataError: If there are not even two training images.
    """
    count = len(data.train)
    if count < 2:
        raise DataError(f"{config.data} has {count} training images; training needs at least 2")
    shares = BatchSharding(
        count=count,
        batch_size=min(config.batch_size, count),
        drop_last=count % config.batch_size == 1,
        place=place,
        even=even,
    )
    batches = ShardedBatches(EpochSampler(count, config.seed), shares)
    return EpochLoader(data.train, batch_sampler=batches, **_loader_options(config))


def evaluation_loader(data: Data, config: TrainConfig, place: ProcessRank = ALONE, *, even: bool = True) -> EpochLoader:
    """Batches (N, C, size, size) and (N,) of the test images in their order, or a process's part of each.

    Args:
        data: The data set.
        config: The run's configuration.
        place: Of this process among those that share a batch.
        even: Whether all of them get as many batches, by images that do not count (see ``BatchSharding``).

    Raises:
        ConfigError: If there are more processes than images.
        DataError: If there are no test images.
    """
    count = len(data.test)
    if not count:
        raise DataError(f"{config.data} has no test images; put some under test/ or val/")
    shares = BatchSharding(count=count, batch_size=config.batch_size, place=place, even=even)
    return EpochLoader(data.test, batch_sampler=ShardedBatches(range(count), shares), **_loader_options(config))


def _loader_options(config: TrainConfig) -> dict[str, Any]:
    on_gpu = config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    form = {} if config.task == "classification" else {"collate_fn": collate}
    return {"num_workers": config.workers, "persistent_workers": config.workers > 0, "pin_memory": on_gpu, **form}
