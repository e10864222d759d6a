"""Data sets as the loop takes them: images of one size, augmented by place in the run, in batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from stripefold.errors import ConfigError, DataError
from stripefold_lab.processes import ALONE, ProcessRank
from stripefold_lab.training.batch_sharding import BatchSharding, ShardedBatches
from stripefold_lab.training.loader import EpochLoader
from stripefold_lab.training.seeding import EpochSampler, SeedKey, derive_seed
from stripefold_lab.training.tasks import get_task

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.images import Samples
    from stripefold_lab.training.transforms import ImageTransform


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What a network must know about the data.

    Attributes:
        classes: Names of the classes; where pixels or boxes have them, the background first.
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


class TrainingSamples(Dataset[tuple[Tensor, Any]]):
    """Augmented samples; a key is (epoch, index), and the two and the seed alone decide about the augmentation.

    Args:
        source: The samples as they lie there.
        augment: From one of them and a seed to the network's input (C, size, size) and its target.
        seed: Seed of the run.
    """

    def __init__(self, source: Samples, augment: Callable[[Any, int], tuple[Tensor, Any]], seed: int) -> None:
        self.source = source
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SeedKey) -> tuple[Tensor, Any]:
        epoch, index = key
        return self.augment(self.source[index], derive_seed(self.seed, "augmentation", epoch, index))


class EvaluationSamples(Dataset[tuple[Tensor, Any]]):
    """Samples as they are, brought to the network's size.

    Args:
        source: The samples as they lie there.
        prepare: From one of them to the network's input (C, size, size) and its target; takes as ``change`` what
            happens to the image in 0..1 before it is normalised, or None.
        change: The same for an image and its index.
    """

    def __init__(
        self,
        source: Samples,
        prepare: Callable[..., tuple[Tensor, Any]],
        *,
        change: ImageTransform | None = None,
    ) -> None:
        self.source = source
        self.prepare = prepare
        self.change = change

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        change = self.change
        told = None if change is None else lambda image: change(image, index)
        return self.prepare(self.source[index], change=told)

    def first(self, most: int) -> Tensor:
        """The first images, (N, C, H, W), at most so many."""
        return torch.stack([self[index][0] for index in range(min(most, len(self)))])

    def changed(self, change: ImageTransform | None) -> EvaluationSamples:
        """The same samples with something done to each image before it is normalised."""
        return EvaluationSamples(self.source, self.prepare, change=change)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Both halves of a data set, ready for loaders.

    Attributes:
        train: Training images.
        test: Test images.
        spec: What the network must know.
        whole: Training and test images as the source gives them, before any limit; what ``fingerprint`` looks at.
        root: The folder in which the names of its files begin, which is no part of that.
        preparation: What happens to a test image, in words.
    """

    train: TrainingSamples
    test: EvaluationSamples
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
    task = get_task(config.task)
    task.check_data(config.data)
    root = Path(config.data.partition(":")[2] or config.data_dir or "data").expanduser()
    return replace(task.load_data(config), root=str(root))


def image_size(config: TrainConfig, own: int | None) -> int:
    """The side that images are brought to, where the data set's own is ``own``, or None: its images differ.

    Raises:
        ConfigError: Neither says one.
    """
    size = config.image_size or own
    if size is None:
        raise ConfigError(f"image_size is None, and the images of {config.data!r} differ in size; set image_size")
    return size


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
    size, alone = min(config.batch_size, count), count % config.batch_size == 1
    shares = BatchSharding(count=count, batch_size=size, drop_last=alone, place=place, even=even)
    batches = ShardedBatches(EpochSampler(count, config.seed), shares)
    return EpochLoader(data.train, batch_sampler=batches, **_loader_options(config))


def evaluation_loader(data: Data, config: TrainConfig, place: ProcessRank = ALONE, *, even: bool = True) -> EpochLoader:
    """Batches (N, C, size, size) and (N,) of the test images in their order, or a process's part of each.

    Arguments as for ``training_loader``.

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
    workers = {"num_workers": config.workers, "persistent_workers": config.workers > 0, "pin_memory": on_gpu}
    return {**workers, "collate_fn": collate}


def collate(samples: list[tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
    """Images (N, C, H, W), and their targets stacked; dictionaries, of any number of objects each, in a list."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets) if isinstance(targets[0], dict) else default_collate(list(targets))
