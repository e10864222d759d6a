"""Where images come from: embedded, a folder, or torchvision's data sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stripefold.errors import DataError
from stripefold_lab.training.images import ArrayImages, FileImages, Samples

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The reference code's numbers for both CIFARs.
CIFAR_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A data set as it lies there.

    Attributes:
        train: Training images.
        test: Test images.
        classes: Names of the classes.
        channels: Channels of the images.
        image_size: Their side; None where images differ.
        mean: Per channel, for normalisation; ImageNet's where none is given.
        std: Likewise.
        middle: Share of the shorter side that testing looks at.
    """

    train: Samples
    test: Samples
    classes: tuple[str, ...]
    channels: int
    image_size: int | None
    mean: tuple[float, ...] = IMAGENET_STATISTICS[0]
    std: tuple[float, ...] = IMAGENET_STATISTICS[1]
    middle: float = 1.0


def open_source(config: TrainConfig) -> DataSource:
    """The data set that ``config.data`` names.

    Args:
        config: The run's configuration.

    Raises:
        DataError: If it is not there, empty, or of the wrong form.
    """
    if config.data == "digits":
        return _digits()
    if config.data.startswith("folder:"):
        return _folder(Path(config.data.partition(":")[2]).expanduser())
    return _torchvision(config)


def _digits() -> DataSource:
    """Scikit-learn's 1797 handwritten digits, 8x8: 1437 to train and 360 to test, each class in proportion."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError('the digits come with scikit-learn; run: pip install "stripefold[train]"') from error
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(range(len(labels)), test_size=360, stratify=digits.target, random_state=0)
    return DataSource(
        train=ArrayImages(images[train], labels[train]),
        test=ArrayImages(images[test], labels[test]),
        classes=tuple("0123456789"),
        channels=1,
        image_size=8,
        mean=(0.3053,),
        std=(0.3761,),
    )


def _folder(root: Path) -> DataSource:
    if not root.is_dir():
        raise DataError(f"no folder {root}; data=folder:PATH needs PATH/train and PATH/test (or PATH/val)")
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not tests:
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:6]) or "nothing"
        raise DataError(f"{root} needs train/ and test/ or val/, each with a folder per class; found: {found}")
    classes, train = _scan(root / "train")
    if len(classes) < 2:
        raise DataError(f"{root / 'train'} has one class, {classes[0]!r}; at least two are needed")
    test_classes, test = _scan(tests[0])
    if test_classes != classes:
        odd = ", ".join(sorted(set(classes) ^ set(test_classes))[:6])
        raise DataError(f"{root}: train and {tests[0].name} have different classes ({odd}); they must be the same")
    first = train[0][0].shape[1:]
    size = (
        min(first)
        if all(train[i][0].shape[1:] == first for i in range(0, len(train), max(1, len(train) // 8)))
        else None
    )
    return DataSource(
        train=train, test=test, classes=classes, channels=3, image_size=size,
        middle=1.0 if size is not None and size < 128 else 0.875,
    )  # fmt: skip


def _scan(folder: Path) -> tuple[tuple[str, ...], FileImages]:
    from torchvision.datasets import ImageFolder

    class Visible(ImageFolder):
        """Without the folders that tools hide between the classes, such as ``.ipynb_checkpoints``."""

        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            names = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
            return names, {name: number for number, name in enumerate(names)}

    try:
        found = Visible(str(folder))
    except (FileNotFoundError, OSError) as error:
        raise DataError(f"{folder} is no folder of classes: {error}") from error
    return tuple(found.classes), FileImages(list(found.samples))


def _torchvision(config: TrainConfig) -> DataSource:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError(f'{config.data} comes through torchvision; run: pip install "stripefold[vision]"') from error
    root = Path(config.data_dir or "data").expanduser()
    options: dict[str, Any] = {} if config.data == "imagenet" else {"download": config.download}
    try:
        return OPENERS[config.data](datasets, str(root), options)
    except (RuntimeError, OSError) as error:
        cure = (
            "put its train/ and val/ folders or its archives there, or use data=folder:PATH"
            if config.data == "imagenet"
            else "set data_dir to where it is, or download: true"
        )
        raise DataError(f"{config.data} was looked for in {root.absolute()}: {error}; {cure}") from error


def _cifar(datasets: Any, root: str, options: dict[str, Any], kind: str) -> DataSource:
    train, test = (getattr(datasets, kind)(root, train=part, **options) for part in (True, False))
    arrays = [
        ArrayImages(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets))
        for part in (train, test)
    ]
    mean, std = CIFAR_STATISTICS
    return DataSource(
        train=arrays[0], test=arrays[1], classes=tuple(train.classes), channels=3, image_size=32, mean=mean, std=std
    )


def _stl10(datasets: Any, root: str, options: dict[str, Any]) -> DataSource:
    train, test = (datasets.STL10(root, split=part, **options) for part in ("train", "test"))
    arrays = [ArrayImages(torch.from_numpy(part.data), torch.from_numpy(part.labels).long()) for part in (train, test)]
    return DataSource(train=arrays[0], test=arrays[1], classes=tuple(train.classes), channels=3, image_size=96)


def _fashion(datasets: Any, root: str, options: dict[str, Any]) -> DataSource:
    train, test = (datasets.FashionMNIST(root, train=part, **options) for part in (True, False))
    arrays = [ArrayImages(part.data[:, None], part.targets) for part in (train, test)]
    return DataSource(
        train=arrays[0], test=arrays[1], classes=tuple(train.classes), channels=1, image_size=28,
        mean=(0.2860,), std=(0.3530,),
    )  # fmt: skip


def _imagenet(datasets: Any, root: str, options: dict[str, Any]) -> DataSource:
    train, test = (datasets.ImageNet(root, split=part, **options) for part in ("train", "val"))
    return DataSource(
        train=FileImages(train.samples), test=FileImages(test.samples), channels=3, image_size=None,
        classes=tuple(names[0] for names in train.classes), middle=0.875,
    )  # fmt: skip


OPENERS: dict[str, Callable[[Any, str, dict[str, Any]], DataSource]] = {
    "cifar10": lambda datasets, root, options: _cifar(datasets, root, options, "CIFAR10"),
    "cifar100": lambda datasets, root, options: _cifar(datasets, root, options, "CIFAR100"),
    "stl10": _stl10,
    "fashion_mnist": _fashion,
    "imagenet": _imagenet,
}
