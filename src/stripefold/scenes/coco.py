"""Scenes from COCO's JSON: boxes and masks of objects.

Source: Lin et al. 2014; the format is described at cocodataset.org under "Data format", "Object Detection".
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stripefold.errors import DataError
from stripefold.scenes.files import need_folder, read_json
from stripefold.scenes.image_files import read_image
from stripefold.scenes.scene import Scene
from stripefold.scenes.shapes import class_map


@dataclass(frozen=True)
class CocoScenes:
    """The images of one annotation file.

    Attributes:
        names: Names of the classes, in the order of their category ids.
        numbers: Category id -> class number, from 1.
        images: Path and id of each image.
        objects: Annotations of each image id.
    """

    names: tuple[str, ...]
    numbers: Mapping[int, int]
    images: tuple[tuple[Path, int], ...]
    objects: Mapping[int, list[dict[str, Any]]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes without the background."""
        return self.names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Scene:
        path, identity = self.images[index]
        image = read_image(path)
        height, width = image.shape[1:]
        # A few published boxes have no area; nothing can be found there.
        objects = [each for each in self.objects.get(identity, []) if min(each["bbox"][2:]) > 0]
        boxes = torch.tensor([each["bbox"] for each in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [object_mask(each["segmentation"], height, width) for each in objects if each.get("segmentation")]
        labels = torch.tensor([self.numbers[each["category_id"]] for each in objects], dtype=torch.int64)
        complete = len(masks) == len(objects)
        stacked = torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool)
        return Scene(
            image=image,
            boxes=boxes,
            labels=labels,
            masks=stacked if complete else None,
            crowd=torch.tensor([bool(each.get("iscrowd", 0)) for each in objects], dtype=torch.bool),
            classes=class_map(stacked, labels) if complete else None,
        )


def read_coco(annotations: Path, images: Path) -> CocoScenes:
    """Open one annotation file; images are read when asked for.

    Args:
        annotations: The JSON file.
        images: The folder that its file names are in.

    Raises:
        DataError: If the file is no such file, or refers to what it does not hold.
    """
    content = read_json(annotations)
    try:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        numbers = {category["id"]: number for number, category in enumerate(categories, start=1)}
        objects: dict[int, list[dict[str, Any]]] = {}
        for each in content["annotations"]:
            _check(each, numbers, annotations)
            objects.setdefault(each["image_id"], []).append(each)
        found = tuple((images / image["file_name"], image["id"]) for image in content["images"])
        names = tuple(category["name"] for category in categories)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{annotations} is no COCO annotation file (missing {error}); it needs images, annotations and categories"
        ) from error
    if not found:
        raise DataError(f"{annotations} lists no images")
    return CocoScenes(names=names, numbers=numbers, images=found, objects=objects)


def _check(annotation: Mapping[str, Any], numbers: Mapping[int, int], path: Path) -> None:
    if annotation["category_id"] not in numbers:
        raise DataError(f"{path}: annotation {annotation.get('id')} has category {annotation['category_id']}, unlisted")
    if len(annotation["bbox"]) != 4:
        raise DataError(f"{path}: annotation {annotation.get('id')} has bbox {annotation['bbox']}; give [x, y, w, h]")


def open_coco(root: Path) -> tuple[CocoScenes, CocoScenes]:
    """Training and validation scenes of a folder laid out as COCO's own.

    ``annotations/instances_train*.json`` with ``train*/`` (or ``images/train*/``), and the same with ``val``.

    Args:
        root: The folder.

    Raises:
        DataError: If something is missing.
    """
    folder = need_folder(root, "annotations", form="a COCO data set")
    train, val = (_half(root, folder, half) for half in ("train", "val"))
    if train.names != val.names:
        odd = ", ".join(sorted(set(train.names) ^ set(val.names))[:6])
        raise DataError(f"{root}: the two annotation files have different categories ({odd}); they must be the same")
    return train, val


def _half(root: Path, folder: Path, half: str) -> CocoScenes:
    files = sorted(folder.glob(f"instances_{half}*.json"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(f"{folder} must hold one instances_{half}*.json; found: {names}")
    name = files[0].stem.removeprefix("instances_")
    return read_coco(files[0], need_folder(root, name, f"images/{name}", form="a COCO data set"))


def object_mask(segmentation: Any, height: int, width: int) -> Tensor:
    """The pixels of an object, (height, width) bool.

    Args:
        segmentation: A list of polygons [x1, y1, x2, y2 ...], or run lengths, compressed or not.
        height: Of the image.
        width: Of the image.

    Raises:
        DataError: If pycocotools, which knows these forms, is not installed.
    """
    try:
        from pycocotools import mask as runs  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError('COCO masks are read by pycocotools; run: pip install "stripefold[train]"') from error
    if isinstance(segmentation, list):
        encoded = runs.merge(runs.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = runs.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    with warnings.catch_warnings():
        # pycocotools up to 2.0.11 hands numpy arrays over in the way of numpy 1.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        return torch.from_numpy(np.asarray(runs.decode(encoded), dtype=bool))
