"""Scenes in the layout of Pascal VOC: class maps for segmentation, boxes for detection.

Source: Everingham et al. 2010, and the development kit's documentation, sections 3.5 and 6.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor

from stripefold.documents import MIB, DocumentError, read_bytes, shown
from stripefold.errors import DataError, one_line
from stripefold_lab.datasets.files import need_files, need_folder, read_lines
from stripefold_lab.datasets.image_files import read_class_map, read_image
from stripefold_lab.datasets.scene import LEFT_OUT, Scene, has_area, no_objects

FORM = "a Pascal VOC data set"
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

LABELS = "labels.txt"
"""Names the classes of a data set in this layout that has others than VOC's."""
MOST_CLASSES = 100_000
XML_LIMIT = 16 * MIB
LARGEST = 1e6


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
            raise DataError(
                f"{map_file} holds class {number}; there are {len(self.names)} classes, and 255 for none: name the "
                f"classes of the data, one a line, in {LABELS} at its root"
            )
        return no_objects(image, classes if self.zero_counts else classes.masked_fill(classes == 0, 255))


@dataclass(frozen=True)
class VocObject:
    """One object of a VOC XML file.

    Attributes:
        number: Its place in the file, from 1.
        name: Its class.
        box: Left, top, right, bottom in pixels from 0; right and bottom are outside.
        difficult: Whether it does not count in the score.
    """

    number: int
    name: str
    box: tuple[float, float, float, float]
    difficult: bool

    def reaches_out(self, size: tuple[int, int] | None) -> bool:
        """Whether it lies outside of an image by more than a pixel: files that count from 0 begin one too early."""
        left, top, right, bottom = self.box
        return min(left, top) < -1 or (size is not None and (right > size[1] + 1 or bottom > size[0] + 1))


@dataclass(frozen=True)
class VocAnnotation:
    """What a VOC XML file holds.

    Attributes:
        objects: Its objects.
        size: Height and width of the image that their boxes were drawn on; None where the file does not say.
    """

    objects: tuple[VocObject, ...]
    size: tuple[int, int] | None


@dataclass(frozen=True)
class VocBoxes:
    """Images with the boxes of their objects.

    Attributes:
        names: Names of the classes.
        files: Image and XML file of each scene.
        annotations: What each XML file holds.
    """

    names: tuple[str, ...]
    files: tuple[tuple[Path, Path], ...]
    annotations: tuple[VocAnnotation, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes without the background."""
        return self.names

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Scene:
        (picture, annotation), held = self.files[index], self.annotations[index]
        image, objects = read_image(picture, annotated=held.size), held.objects
        height, width = image.shape[1:]
        boxes = _cut(objects, (height, width))
        for each, seen in zip(objects, has_area(boxes, max(height, width)).tolist(), strict=True):
            if each.reaches_out((height, width)) or not seen:
                raise DataError(
                    f"{annotation}: object {each.number} ({shown(each.name)}) has a box outside of its image of "
                    f"{width} x {height} pixels: {_as_written(each)}"
                )
        return Scene(
            image=image,
            boxes=boxes,
            labels=torch.tensor([self.names.index(each.name) + 1 for each in objects], dtype=torch.int64),
            masks=None,
            # VOC leaves objects marked as difficult out of the score, as COCO does crowds.
            crowd=torch.tensor([each.difficult for each in objects], dtype=torch.bool),
            classes=None,
        )


def _cut(objects: Sequence[VocObject], size: tuple[int, int] | None) -> Tensor:
    """Boxes (n, 4) float32, cut to their image as far as its size is known."""
    boxes = torch.tensor([each.box for each in objects], dtype=torch.float32).reshape(-1, 4).clamp(min=0)
    return boxes if size is None else boxes.minimum(torch.tensor([size[1], size[0]] * 2, dtype=torch.float32))


def _as_written(each: VocObject) -> str:
    left, top, right, bottom = each.box
    return f"xmin {left + 1:g}, ymin {top + 1:g}, xmax {right:g}, ymax {bottom:g}"


def read_annotation(path: Path) -> VocAnnotation:
    """What a VOC XML file holds.

    VOC counts pixels from 1 and its right and bottom pixels belong to the box: [1, 1, 1, 1] is [0, 0, 1, 1] here.

    Raises:
        DataError: If the file cannot be read, or an object lacks a part or has a box that is none.
    """
    try:
        content = read_bytes(path, limit=XML_LIMIT)
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise DocumentError("it defines entities, which no annotation needs")
        root = ElementTree.fromstring(content)
        objects = tuple(_object(each, number) for number, each in enumerate(root.iter("object"), start=1))
        return VocAnnotation(objects, _size(root))
    except (DocumentError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} is no VOC annotation: {one_line(error)}") from error


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Height and width; a part that is missing, empty or 0 is one that the tool did not know."""
    height, width = (int(root.findtext(f"size/{side}", "").strip() or 0) for side in ("height", "width"))
    return (height, width) if height > 0 and width > 0 else None


def _object(each: ElementTree.Element, number: int) -> VocObject:
    name = each.findtext("name", "").strip()
    where = f"object {number} ({shown(name)})"
    written = {side: each.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax")}
    try:
        left, top, right, bottom = map(float, written.values())
    except ValueError as error:
        raise DocumentError(f"{where}: {error}") from error
    # Not the other way round: a comparison with NaN holds never.
    if not (name and -1 <= left <= right < LARGEST and -1 <= top <= bottom < LARGEST):
        raise DocumentError(f"{where} has no name, or a box that is none: {shown(written)}")
    difficult = each.findtext("difficult", "0").strip()
    if difficult not in ("0", "1", "", "Unspecified"):
        raise DocumentError(f"{where} has difficult {shown(difficult)}; give 0 or 1")
    return VocObject(number, name, (left - 1, top - 1, right, bottom), difficult == "1")


def open_voc_maps(root: Path) -> tuple[ClassMaps, ClassMaps]:
    """Training and validation scenes for segmentation: ``ImageSets/Segmentation``, ``SegmentationClass``.

    Args:
        root: The folder that holds ``JPEGImages``, such as ``VOCdevkit/VOC2012``. A ``labels.txt`` in it, one name a
            line, stands for VOC's own twenty classes.

    Raises:
        DataError: If something is missing.
    """
    names = class_names(root, root / LABELS) or VOC_CLASSES
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
    names = class_names(root, root / LABELS) or VOC_CLASSES
    boxes = need_folder(root, "Annotations", form=FORM)
    train, val = (_files(root, "Main", half, boxes, ".xml") for half in ("train", "val"))
    return _with_objects(root, names, train), _with_objects(root, names, val)


def _with_objects(root: Path, names: tuple[str, ...], files: tuple[tuple[Path, Path], ...]) -> VocBoxes:
    """All XML files are read at the start, so that what is wrong in one does not end an epoch in the middle."""
    annotations = tuple(read_annotation(annotation) for _, annotation in files)
    for (_, annotation), found in zip(files, annotations, strict=True):
        unknown = [each.name for each in found.objects if each.name not in names]
        if unknown:
            listed = textwrap.shorten(", ".join(names), 300, placeholder=" ...")
            raise DataError(
                f"{annotation}: class {shown(unknown[0])} is not among {listed}; name the classes of the "
                f"data, one a line, in {root / LABELS}"
            )
    return VocBoxes(names, files, _without_empty(files, annotations))


def _without_empty(
    files: tuple[tuple[Path, Path], ...], annotations: tuple[VocAnnotation, ...]
) -> tuple[VocAnnotation, ...]:
    """Without the objects of which cutting leaves nothing; what is further outside is refused with its image."""
    kept, empty = [], []
    for (_, path), found in zip(files, annotations, strict=True):
        seen = has_area(_cut(found.objects, found.size), max(found.size or (0,))).tolist()
        left = [each for each, area in zip(found.objects, seen, strict=True) if area or each.reaches_out(found.size)]
        empty += [f"object {each.number} of {path.name}" for each in found.objects if each not in left]
        kept.append(replace(found, objects=tuple(left)))
    if empty:
        warnings.warn(f"{files[0][1].parent}: {len(empty)} {LEFT_OUT} (the first: {empty[0]})", stacklevel=2)
    return tuple(kept)


def class_names(root: Path, path: Path) -> tuple[str, ...]:
    """The names in a file, one a line; none where there is no such file.

    Raises:
        DataError: If it holds none, or one twice, or more than ``MOST_CLASSES``.
    """
    if not path.exists():
        return ()
    names = read_lines(path)
    if len(names) > MOST_CLASSES:
        raise DataError(f"{path} names {len(names)} classes; there may be {MOST_CLASSES}")
    if not names or len(set(names)) != len(names):
        raise DataError(f"{path} must name each class of {root} once, one a line, without the background")
    return tuple(names)


def _files(root: Path, kind: str, half: str, folder: Path, suffix: str) -> tuple[tuple[Path, Path], ...]:
    pictures = need_folder(root, "JPEGImages", form=FORM)
    listing = need_folder(root, f"ImageSets/{kind}", form=FORM) / f"{half}.txt"
    names = [line.split()[0] for line in read_lines(listing)]
    if not names:
        raise DataError(f"{listing} lists no images")
    images = need_files(pictures, [f"{name}.jpg" for name in names], listed=listing)
    return tuple(zip(images, need_files(folder, [name + suffix for name in names], listed=listing), strict=True))
