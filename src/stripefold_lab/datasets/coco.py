"""Scenes from COCO's JSON: boxes and masks of objects.

Source: Lin et al. 2014; the format is described at cocodataset.org under "Data format", "Object Detection".
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stripefold.documents import DocumentError, shown
from stripefold.errors import DataError
from stripefold.records import checked
from stripefold_lab.datasets.coco_objects import CocoObject, check_segmentation, object_mask, read_object
from stripefold_lab.datasets.files import need_files, need_folder, read_json
from stripefold_lab.datasets.image_files import read_image
from stripefold_lab.datasets.scene import IGNORED, LEFT_OUT, Scene, has_area
from stripefold_lab.datasets.shapes import class_map

LARGEST_SIDE = 2**17


@dataclass(frozen=True)
class CocoScenes:
    """The images of one annotation file.

    Attributes:
        names: Names of the classes, in the order of their category ids.
        numbers: Category id -> class number, from 1.
        images: Path and id of each image.
        sizes: Height and width of each image, as the file says.
        objects: Objects of each image id.
    """

    names: tuple[str, ...]
    numbers: Mapping[int, int]
    images: tuple[tuple[Path, int], ...]
    sizes: Mapping[int, tuple[int, int]]
    objects: Mapping[int, list[CocoObject]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes without the background."""
        return self.names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Scene:
        path, identity = self.images[index]
        size = self.sizes[identity]
        objects = self.objects.get(identity, [])
        masks = [object_mask(each.segmentation, *size) for each in objects if each.segmentation]
        labels = torch.tensor([self.numbers[each.category] for each in objects], dtype=torch.int64)
        complete = len(masks) == len(objects)
        stacked = torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool)
        return Scene(
            image=read_image(path, annotated=size),
            boxes=_boxes(objects, self.sizes),
            labels=labels,
            masks=stacked if complete else None,
            crowd=torch.tensor([each.crowd for each in objects], dtype=torch.bool),
            # A class map holds a byte per pixel, and one value of it does not count.
            classes=class_map(stacked, labels) if complete and len(self.names) < IGNORED else None,
        )


def read_coco(annotations: Path, images: Path) -> CocoScenes:
    """Open one annotation file; images are read when asked for.

    Boxes are cut to their image. Objects of which nothing lies in their image are left out, as a few published ones
    are; how many there are of both is said in one warning.

    Args:
        annotations: The JSON file.
        images: The folder that its file names are in.

    Raises:
        DataError: If the file is no such file, refers to what it does not hold or to an image that is not there, or an
            annotation is refused; it is named.
    """
    content = read_json(annotations)
    try:
        lists = {key: checked(list[Any], content[key], key) for key in ("images", "categories", "annotations")}
        names, numbers = _categories(lists["categories"])
        found, sizes = _images(lists["images"])
        if not found:
            raise DataError(f"{annotations} lists no images")
        objects = _objects(lists["annotations"], numbers, sizes, annotations)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{annotations} is no COCO annotation file (missing {error}); it needs images, annotations and categories"
        ) from error
    except DocumentError as error:
        raise DataError(f"{annotations}: {error}") from error
    files = need_files(images, [name for name, _ in found], listed=annotations)
    pairs = tuple((path, identity) for path, (_, identity) in zip(files, found, strict=True))
    return CocoScenes(names=names, numbers=numbers, images=pairs, sizes=sizes, objects=objects)


def _categories(categories: list[Any]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names in the order of their ids, and the number of each id."""
    found: dict[int, str] = {}
    for place, each in enumerate(categories):
        where = f"category {_named(each, place)}"
        identity, name = checked(int, each["id"], f"id of {where}"), checked(str, each["name"], f"name of {where}")
        if identity in found or name in found.values():
            raise DocumentError(f"{where} ({shown(name)}) has the id or the name of another one")
        found[identity] = name
    order = sorted(found)
    return tuple(found[identity] for identity in order), {each: number for number, each in enumerate(order, start=1)}


def _images(images: list[Any]) -> tuple[list[tuple[str, int]], dict[int, tuple[int, int]]]:
    """File name and id of each image, and the size of each id."""
    found, sizes = [], {}
    for place, each in enumerate(images):
        where = f"image {_named(each, place)}"
        identity = checked(int, each["id"], f"id of {where}")
        height, width = (checked(int, each[side], f"{side} of {where}") for side in ("height", "width"))
        if identity in sizes or not (0 < height < LARGEST_SIDE and 0 < width < LARGEST_SIDE):
            raise DocumentError(f"{where} has an id that is taken, or an impossible size: {height} x {width}")
        sizes[identity] = (height, width)
        found.append((checked(str, each["file_name"], f"file_name of {where}"), identity))
    return found, sizes


def _objects(
    annotations: list[Any], numbers: Mapping[int, int], sizes: Mapping[int, tuple[int, int]], path: Path
) -> dict[int, list[CocoObject]]:
    """The objects of each image; those of which nothing is to be seen are left out and counted."""
    objects: list[tuple[str, CocoObject]] = []
    for place, annotation in enumerate(annotations):
        name = f"annotation {_named(annotation, place)}"
        each = read_object(annotation, name)
        if each.category not in numbers:
            raise DocumentError(f"{name} has category {each.category}, unlisted")
        if each.image not in sizes:
            raise DocumentError(f"{name} is of image {each.image}, unlisted; take it out, or list the image")
        if each.segmentation is not None:
            check_segmentation(each.segmentation, sizes[each.image], name)
        objects.append((name, each))
    seen = has_area(
        _boxes([each for _, each in objects], sizes), torch.tensor([max(sizes[each.image]) for _, each in objects])
    )
    found: dict[int, list[CocoObject]] = {}
    empty, cut = [], []
    for (name, each), kept in zip(objects, seen.tolist(), strict=True):
        if not kept:
            empty.append(name)
            continue
        if each.reaches_out(sizes[each.image]):
            cut.append(name)
        found.setdefault(each.image, []).append(each)
    _tell(empty, cut, path)
    return found


def _boxes(objects: list[CocoObject], sizes: Mapping[int, tuple[int, int]]) -> torch.Tensor:
    """(n, 4) float32, each cut to its image."""
    corners = [each.corners(sizes[each.image]) for each in objects]
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def _tell(empty: list[str], cut: list[str], path: Path) -> None:
    said = [
        f"{len(names)} {what} (the first: {names[0]})"
        for names, what in ((empty, LEFT_OUT), (cut, "boxes are cut to it"))
        if names
    ]
    if said:
        warnings.warn(f"{path}: {', '.join(said)}", stacklevel=2)


def _named(each: Any, place: int) -> str:
    """How a message calls an entry: by its id, or by its place in the list where it has none."""
    return shown(each["id"]) if isinstance(each, Mapping) and "id" in each else f"number {place + 1} in the list"


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
        odd = ", ".join(map(shown, sorted(set(train.names) ^ set(val.names))[:6]))
        raise DataError(f"{root}: the two annotation files have different categories ({odd}); they must be the same")
    return train, val


def _half(root: Path, folder: Path, half: str) -> CocoScenes:
    files = sorted(folder.glob(f"instances_{half}*.json"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(f"{folder} must hold one instances_{half}*.json; found: {names}")
    name = files[0].stem.removeprefix("instances_")
    return read_coco(files[0], need_folder(root, name, f"images/{name}", form="a COCO data set"))
