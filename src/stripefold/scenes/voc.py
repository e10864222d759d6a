"""Scenes in the layout of Pascal VOC: class maps for segmentation, boxes for detection.

Source: Everingham et al. 2010, and the development kit's documentation, sections 3.5 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch

from stripefold.errors import DataError
from stripefold.scenes.files import need_folder, read_lines
from stripefold.scenes.image_files import read_class_map, read_image
from stripefold.scenes.scene import Scene, no_objects

FORM = "a Pascal VOC data set"
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class ClassMaps:
    """Images with the class of each pixel.

    Attributes:
        names: Names of the classes, number 1 first.
        files: Image and class map of each scene.
        zero_counts: Whether pixels of number 0 are background; else they do not count.
    """

    names: tuple[str, ...]
    files: tuple[tuple[Path, Path], ...]
    zero_counts: bool = True

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes without the background."""
        return self.names

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Scene:
        picture, map_file = self.files[index]
        image, classes = read_image(picture), read_class_map(map_file)
        if classes.shape != image.shape[1:]:
            sizes = f"{tuple(classes.shape)} and {tuple(image.shape[1:])}"
            raise DataError(f"{map_file} and {picture} differ in size: {sizes}")
        unknown = (classes > len(self.names)) & (classes != 255)
        if unknown.any():
            number = int(classes[unknown][0])
            raise DataError(f"{map_file} holds class {number}; there are {len(self.names)} classes, and 255 for none")
        return no_objects(image, classes if self.zero_counts else classes.masked_fill(classes == 0, 255))


@dataclass(frozen=True)
class VocBoxes:
    """Images with the boxes of their objects.

    Attributes:
        names: Names of the classes.
        files: Image and XML file of each scene.
    """

    names: tuple[str, ...]
    files: tuple[tuple[Path, Path], ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes without the background."""
        return self.names

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Scene:
        picture, annotation = self.files[index]
        objects = read_objects(annotation)
        unknown = [name for name, _, _ in objects if name not in self.names]
        if unknown:
            raise DataError(f"{annotation}: class {unknown[0]!r} is not among {', '.join(self.names)}")
        return Scene(
            image=read_image(picture),
            boxes=torch.tensor([box for _, box, _ in objects], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([self.names.index(name) + 1 for name, _, _ in objects], dtype=torch.int64),
            masks=None,
            # VOC leaves objects marked as difficult out of the score, as COCO does crowds.
            crowd=torch.tensor([difficult for _, _, difficult in objects], dtype=torch.bool),
            classes=None,
        )


def read_objects(path: Path) -> list[tuple[str, list[float], bool]]:
    """Name, box and difficulty of each object in a VOC XML file.

    VOC counts pixels from 1 and its right and bottom pixels belong to the box: [1, 1, 1, 1] is [0, 0, 1, 1] here.

    Raises:
        DataError: If the file cannot be read, or an object lacks a part.
    """
    try:
        found = []
        for each in ElementTree.parse(path).getroot().iter("object"):
            left, top, right, bottom = (
                float(each.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            name = each.findtext("name", "")
            found.append((name, [left - 1, top - 1, right, bottom], each.findtext("difficult", "0").strip() == "1"))
        return found
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path} is no VOC annotation: {error}") from error


def open_voc_maps(root: Path) -> tuple[ClassMaps, ClassMaps]:
    """Training and validation scenes for segmentation: ``ImageSets/Segmentation``, ``SegmentationClass``.

    Args:
        root: The folder that holds ``JPEGImages``, such as ``VOCdevkit/VOC2012``. A ``labels.txt`` in it, one name a
            line, stands for VOC's own twenty classes.

    Raises:
        DataError: If something is missing.
    """
    names = class_names(root, root / "labels.txt") or VOC_CLASSES
    maps = need_folder(root, "SegmentationClass", form=FORM)
    train, val = (_files(root, "Segmentation", half, maps, ".png") for half in ("train", "val"))
    return ClassMaps(names, train), ClassMaps(names, val)


def open_voc_boxes(root: Path) -> tuple[VocBoxes, VocBoxes]:
    """Training and validation scenes for detection: ``ImageSets/Main``, ``Annotations``.

    Args:
        root: As for ``open_voc_maps``.

    Raises:
        DataError: If something is missing.
    """
    names = class_names(root, root / "labels.txt") or VOC_CLASSES
    boxes = need_folder(root, "Annotations", form=FORM)
    train, val = (_files(root, "Main", half, boxes, ".xml") for half in ("train", "val"))
    return VocBoxes(names, train), VocBoxes(names, val)


def class_names(root: Path, path: Path) -> tuple[str, ...]:
    """The names in a file, one a line; none where there is no such file.

    Raises:
        DataError: If it holds none, or one twice.
    """
    if not path.exists():
        return ()
    names = read_lines(path)
    if not names or len(set(names)) != len(names):
        raise DataError(f"{path} must name each class of {root} once, one a line, without the background")
    return tuple(names)


def _files(root: Path, kind: str, half: str, folder: Path, suffix: str) -> tuple[tuple[Path, Path], ...]:
    pictures = need_folder(root, "JPEGImages", form=FORM)
    listing = need_folder(root, f"ImageSets/{kind}", form=FORM) / f"{half}.txt"
    names = [line.split()[0] for line in read_lines(listing)]
    if not names:
        raise DataError(f"{listing} lists no images")
    return tuple((pictures / f"{name}.jpg", folder / f"{name}{suffix}") for name in names)
