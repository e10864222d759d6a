"""One object of a COCO annotation file: checked before anything is computed from it, and before native code sees it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stripefold.documents import DocumentError, shown
from stripefold.errors import DataError
from stripefold.records import checked

LARGEST = 1e9
"""No image is so wide; beyond, float32 boxes and the integers of native code overflow."""
MOST_STEPS = 2**24
"""Of a polygon's outline, in fifths of a pixel, as pycocotools walks it; it asks for that much memory at once."""


@dataclass(frozen=True, kw_only=True)
class CocoObject:
    """One annotation.

    Attributes:
        image: Id of its image.
        category: Id of its category.
        box: Left, top, width, height in pixels.
        crowd: Whether it is a group that a detector need not find.
        segmentation: Polygons or run lengths; None where there are none.
    """

    image: int
    category: int
    box: tuple[float, float, float, float]
    crowd: bool
    segmentation: Any

    def corners(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Left, top, right and bottom within an image of (height, width)."""
        left, top, width, height = self.box
        ends = ((left, size[1]), (top, size[0]), (left + width, size[1]), (top + height, size[0]))
        first, second, third, fourth = (min(max(value, 0.0), most) for value, most in ends)
        return first, second, third, fourth

    def reaches_out(self, size: tuple[int, int]) -> bool:
        """Whether it lies outside by more than rounding does."""
        left, top, width, height = self.box
        return left < -1 or top < -1 or left + width > size[1] + 1 or top + height > size[0] + 1


def read_object(annotation: Any, where: str) -> CocoObject:
    """An annotation, its types and numbers checked.

    Args:
        annotation: What the file holds.
        where: What it is called in messages.

    Raises:
        DocumentError: Naming what is wrong.
    """
    each = checked(dict[str, Any], annotation, where)
    for name in ("image_id", "category_id", "bbox"):
        if name not in each:
            raise DocumentError(f"{where} lacks {name!r}")
    crowd = each.get("iscrowd", 0)
    if not isinstance(crowd, (int, float)) or crowd not in (0, 1):
        raise DocumentError(f"{where} has iscrowd {shown(crowd)}; give 0 or 1")
    box = each["bbox"]
    if not isinstance(box, list) or len(box) != 4:
        raise DocumentError(f"{where} has bbox {shown(box)}; give [x, y, w, h]")
    left, top, width, height = (checked(float, value, f"a number of the bbox of {where}") for value in box)
    if max(map(abs, (left, top, width, height))) > LARGEST or width < 0 or height < 0:
        raise DocumentError(f"{where} has bbox {shown(box)}; give [x, y, w, h] in pixels, w and h not below 0")
    return CocoObject(
        image=checked(int, each["image_id"], f"image_id of {where}"),
        category=checked(int, each["category_id"], f"category_id of {where}"),
        box=(left, top, width, height),
        crowd=bool(crowd),
        segmentation=each.get("segmentation") or None,
    )


def check_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> None:
    """Refuse what pycocotools would read past its memory with, or would read as something else.

    Args:
        segmentation: A list of polygons [x1, y1, x2, y2 ...], or run lengths, compressed or not.
        size: Height and width of the image.
        where: What its object is called in messages.

    Raises:
        DocumentError: Naming what is wrong.
    """
    height, width = size
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, size, where)
        return
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        raise DocumentError(f"{where} has the segmentation {shown(segmentation)}; give polygons, or size and counts")
    if checked(list[int], segmentation["size"], f"the size of the run lengths of {where}") != [height, width]:
        raise DocumentError(
            f"{where} has run lengths of size {shown(segmentation['size'])}, its image is {[height, width]}"
        )
    counts = segmentation["counts"]
    if isinstance(counts, (str, bytes)):
        counts = run_lengths(counts, where)
    if not isinstance(counts, list) or any(type(count) is not int or count < 0 for count in counts):
        raise DocumentError(f"the run lengths of {where} are no list of whole numbers from 0 on")
    if sum(counts) != height * width:
        raise DocumentError(
            f"the run lengths of {where} add up to {shown(sum(counts))}, not to {height} x {width} pixels"
        )


def _check_polygon(polygon: Any, size: tuple[int, int], where: str) -> None:
    try:
        points = np.asarray(polygon, dtype=np.float64)
        fits = isinstance(polygon, list) and points.ndim == 1 and len(points) >= 6 and len(points) % 2 == 0
        fits = fits and bool(np.isfinite(points).all()) and not any(isinstance(value, (str, bool)) for value in polygon)
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise DocumentError(
            f"{where} has the polygon {shown(polygon)}; give [x1, y1, x2, y2, x3, y3 ...], finite numbers"
        )
    points = points.reshape(-1, 2)
    far = (points < -max(size)) | (points > 2 * max(size))
    steps = 5 * np.abs(points - np.roll(points, 1, axis=0)).max(1) + 2
    if far.any() or steps.sum() > MOST_STEPS:
        raise DocumentError(
            f"{where} has a polygon far outside of its image of {size[0]} x {size[1]} pixels, or an endless one"
        )


def run_lengths(text: str | bytes, where: str = "it") -> list[int]:
    """The run lengths in COCO's compressed form: five bits a sign, from the fourth on differences to the last but one.

    Args:
        text: The form.
        where: What its object is called in messages.

    Raises:
        DocumentError: It ends in the middle of a number, or holds a sign that is none of it.

    >>> run_lengths("52203")
    [5, 2, 2, 2, 5]
    """
    counts: list[int] = []
    value, place = 0, 0
    for sign in text.encode("ascii", "replace") if isinstance(text, str) else text:
        bits = sign - 48
        if not 0 <= bits < 64 or place > 60:
            raise DocumentError(
                f"the run lengths of {where} hold {shown(chr(sign))}, which is not valid in the compressed form"
            )
        value |= (bits & 31) << place
        place += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << place
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, place = 0, 0
    if place:
        raise DocumentError(f"the run lengths of {where} end in the middle of a number")
    return counts


def object_mask(segmentation: Any, height: int, width: int) -> Tensor:
    """The pixels of an object, (height, width) bool.

    Args:
        segmentation: A list of polygons [x1, y1, x2, y2 ...], or run lengths, compressed or not.
        height: Of the image.
        width: Of the image.

    Raises:
        DataError: If it is no such thing, or of another size; or pycocotools, which knows these forms, is not
            installed.
    """
    try:
        from pycocotools import mask as runs  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError('COCO masks are read by pycocotools; run: pip install "stripefold[train]"') from error
    try:
        check_segmentation(segmentation, (height, width), "an object")
    except DocumentError as error:
        raise DataError(str(error)) from error
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
