"""Annotated images as the loop takes them: squares of one size, with class maps or boxes to match."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from stripefold.errors import DataError
from stripefold_lab.datasets import IGNORED, Scene, Scenes, Shapes
from stripefold_lab.names import check_data_name
from stripefold_lab.training.images import choice
from stripefold_lab.training.seeding import SeedKey, derive_seed
from stripefold_lab.training.transforms import ImageTransform, Transform, normalise, resize, scale_to_unit

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig

SHAPES_SIZE = 64
SHAPES_COUNTS = (2000, 400)
STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Target = Tensor | dict[str, Tensor]


def open_scenes(config: TrainConfig) -> tuple[Scenes, Scenes, int | None]:
    """Training scenes, test scenes and their side (None where images differ) of the data set ``config.data`` names.

    Args:
        config: The run's configuration.

    Raises:
        ConfigError: If there is no such data set for the task.
        DataError: If it is not there or of the wrong form.
    """
    from stripefold_lab.datasets.ade20k import open_ade20k
    from stripefold_lab.datasets.coco import open_coco
    from stripefold_lab.datasets.voc import open_voc_boxes, open_voc_maps

    check_data_name(config.task, config.data)
    if config.data == "shapes":
        size = config.image_size or SHAPES_SIZE
        train, test = (Shapes(count, size, seed) for seed, count in enumerate(SHAPES_COUNTS))
        return train, test, size
    readers: dict[tuple[str, str], Any] = {
        ("segmentation", "voc"): open_voc_maps,
        ("segmentation", "ade20k"): open_ade20k,
        ("detection", "coco"): open_coco,
        ("detection", "voc"): open_voc_boxes,
    }
    name, _, path = config.data.partition(":")
    found_train, found_test = readers[config.task, name](Path(path).expanduser())
    return found_train, found_test, None


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How a scene becomes what a task's network takes: the longer side is brought to ``size``, the rest padded.

    Attributes:
        task: ``segmentation``: normalised images and class maps; ``detection``: images in 0..1, which detectors
            normalise themselves, and boxes.
        size: Side of the square.
        masks: Whether the objects' masks are wanted beside their boxes.
    """

    task: str
    size: int
    masks: bool = False

    def __call__(
        self, scene: Scene, *, flip: bool, train: bool, change: Transform | None = None
    ) -> tuple[Tensor, Target]:
        """Image (3, size, size) and its target.

        Args:
            scene: What a reader gave.
            flip: Whether to mirror it left and right.
            train: Whether groups of objects are left out, as training does; a test marks them.
            change: What happens to the image (3, h, w) in 0..1 before it is normalised and padded.

        Raises:
            DataError: If the scene lacks what the task needs.
        """
        height, width = scene.image.shape[1:]
        scale = self.size / max(height, width)
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
        image = scale_to_unit(scene.image)
        image = image if inner == (height, width) else resize(inner, image).clamp(0, 1)
        image = image if change is None else change(image)
        if self.task == "segmentation":
            return self._with_classes(scene, normalise(*STATISTICS, image), flip)
        ratio = torch.tensor([inner[1] / width, inner[0] / height] * 2)
        target = self._objects(scene, inner, ratio, train)
        return _mirror_objects(_pad(image, self.size, 0.0), target) if flip else (_pad(image, self.size, 0.0), target)

    def _with_classes(self, scene: Scene, image: Tensor, flip: bool) -> tuple[Tensor, Tensor]:
        if scene.classes is None:
            raise DataError("a scene has no class map; segmentation needs one per image")
        classes = _pad(_nearest(scene.classes, image.shape[1:]), self.size, IGNORED).long()
        image = _pad(image, self.size, 0.0)
        return (image.flip(2), classes.flip(1)) if flip else (image, classes)

    def _objects(self, scene: Scene, inner: tuple[int, int], ratio: Tensor, train: bool) -> dict[str, Tensor]:
        kept = ~scene.crowd if train else torch.ones_like(scene.crowd)
        target = {"boxes": (scene.boxes * ratio)[kept], "labels": scene.labels[kept]}
        if not train:
            target["iscrowd"] = scene.crowd.long()
        if self.masks:
            if scene.masks is None:
                raise DataError("a scene has boxes without masks; Mask R-CNN needs a mask per object")
            target["masks"] = _pad(_nearest(scene.masks[kept].to(torch.uint8), inner), self.size, 0)
        return target


def _nearest(values: Tensor, size: Any) -> Tensor:
    """Bytes (..., H, W) at another size, no value mixed with another."""
    if tuple(values.shape[-2:]) == tuple(size) or not values.numel():
        return values if values.numel() else values.new_zeros(*values.shape[:-2], *size)
    flat = values.reshape(1, -1, *values.shape[-2:]).float()
    return F.interpolate(flat, size=tuple(size), mode="nearest-exact")[0].reshape(*values.shape[:-2], *size).to(values)


def _pad(values: Tensor, size: int, fill: float) -> Tensor:
    """(..., h, w) with ``fill`` to the right and below, up to (..., size, size)."""
    height, width = values.shape[-2:]
    return F.pad(values, (0, size - width, 0, size - height), value=fill)


def _mirror_objects(image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    left, top, right, bottom = target["boxes"].unbind(1)
    mirrored = {"boxes": torch.stack([image.shape[2] - right, top, image.shape[2] - left, bottom], 1)}
    if "masks" in target:
        mirrored["masks"] = target["masks"].flip(2)
    return image.flip(2), {**target, **mirrored}


class TrainingScenes(Dataset[tuple[Tensor, Target]]):
    """Scenes for training; a key is (epoch, index), and the two and the seed alone decide about the augmentation.

    Args:
        scenes: Where they come from.
        fitting: How they become the network's input.
        flips: Whether every second one is mirrored.
        seed: Seed of the run.
    """

    def __init__(self, scenes: Scenes, fitting: Fitting, *, flips: bool, seed: int) -> None:
        self.scenes = scenes
        self.fitting = fitting
        self.flips = flips
        self.seed = seed

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, key: SeedKey) -> tuple[Tensor, Target]:
        epoch, index = key
        flip = self.flips and derive_seed(self.seed, "augmentation", epoch, index) % 2 == 1
        return self.fitting(self.scenes[index], flip=flip, train=True)


class PlainScenes(Dataset[tuple[Tensor, Target]]):
    """Scenes as they are, brought to the network's size.

    Args:
        scenes: Where they come from.
        fitting: How they become the network's input.
        change: What happens to an image before it is normalised; None is nothing.
    """

    def __init__(self, scenes: Scenes, fitting: Fitting, *, change: ImageTransform | None = None) -> None:
        self.scenes = scenes
        self.fitting = fitting
        self.change = change

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        change = self.change
        told = None if change is None else lambda image: change(image, index)
        return self.fitting(self.scenes[index], flip=False, train=False, change=told)

    def changed(self, change: ImageTransform | None) -> PlainScenes:
        """The same scenes with something done to each image before it is normalised."""
        return PlainScenes(self.scenes, self.fitting, change=change)


@dataclass(frozen=True)
class SceneChoice:
    """Some of the scenes.

    Attributes:
        scenes: All of them.
        indices: Which ones.
    """

    scenes: Scenes
    indices: list[int]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes without the background."""
        return self.scenes.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Scene:
        return self.scenes[self.indices[index]]


def choose_scenes(scenes: Scenes, limit: int | None) -> Scenes:
    """At most ``limit`` of the scenes, the same ones in every run.

    Args:
        scenes: All of them.
        limit: How many; None is all.
    """
    chosen = choice(len(scenes), limit)
    return scenes if chosen is None else SceneChoice(scenes, chosen.tolist())


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[Tensor, Any]:
    """Images (N, 3, H, W); class maps (N, H, W), or a list of the images' objects."""
    images = torch.stack([image for image, _ in samples])
    targets = [target for _, target in samples]
    first = targets[0]
    return images, torch.stack(targets) if isinstance(first, Tensor) else targets  # type: ignore[arg-type]
