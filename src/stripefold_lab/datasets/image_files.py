"""Reads image files of any depth, orientation and colours, or refuses them by name.

Pillow decodes. What it would do in silence is done in the open here: 16 bits of grey stay 16 bits, an image is turned
as its EXIF orientation says, and transparent pixels, several frames and numbers without a known range are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from stripefold.errors import DataError
from stripefold.inputs import check_regular

if TYPE_CHECKING:
    from PIL.Image import Image

# Those that a folder of classes may hold (torchvision's), and GIF. Others are not even tried: Pillow starts
# Ghostscript for an EPS file, whatever its name ends in.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
WITH_ALPHA = ("LA", "PA", "RGBA", "RGBa", "La")
_ORIENTATION = 0x0112  # EXIF's tag
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF's tags
T = TypeVar("T")


@dataclass(frozen=True)
class _Decoded:
    """What a file holds.

    Attributes:
        image: Upright.
        stored: Its pixels as they lie there; the same object where they are upright.
        most: The largest number that a pixel of more than 8 bits can hold; None with 8 bits or less.
    """

    image: Image
    stored: Image
    most: int | None


def read_image(path: str | Path, *, annotated: tuple[int, int] | None = None) -> Tensor:
    """An image file in RGB, upright: bytes (3, H, W), or float32 in 0..1 where the file holds 16 bits of grey.

    Args:
        path: The file.
        annotated: Height and width of the image that its annotations speak of. They tell whether those were made on the
            upright image, or on the pixels as they are stored.

    Raises:
        DataError: If it is no readable image, or one that has no one meaning as RGB; names the file.
    """
    found = _decode(path)
    image = found.image if annotated is None else _as_annotated(path, found, annotated)
    if found.most is not None:
        return (torch.from_numpy(np.asarray(image).astype(np.float32)) / found.most).expand(3, -1, -1).contiguous()
    colours = _guarded(path, lambda: np.array(_opaque(path, image)))
    return torch.from_numpy(colours).permute(2, 0, 1).contiguous()


def read_class_map(path: str | Path) -> Tensor:
    """The class number of each pixel, (H, W) uint8, of a PNG with a palette or in grey, upright.

    Raises:
        DataError: If it is no readable image, or one whose pixels are no bytes: colours are no class numbers.
    """
    image = _decode(path).image
    if image.mode not in ("P", "L", "1"):
        kind = "has more than 8 bits" if image.mode[0] in "IF" else "is an image in colours"
        raise DataError(f"{path} {kind} (mode {image.mode}); a class map holds a byte per pixel, its class")
    return torch.from_numpy(np.array(image, dtype=np.uint8))


def _decode(path: str | Path) -> _Decoded:
    check_regular(path, DataError)
    return _guarded(path, lambda: _decode_now(path))


def _decode_now(path: str | Path) -> _Decoded:
    from PIL import Image, ImageOps

    with open(path, "rb") as file:
        image = Image.open(file, formats=FORMATS)
        frames = getattr(image, "n_frames", 1)
        # The first picture of an MPO (a camera's JPEG) is by definition the one that stands for it.
        if frames > 1 and image.format != "MPO":
            raise DataError(f"{path} holds {frames} frames, and a sample is one picture; save the one that is meant")
        most = _most(path, image)
        image.load()
        return _Decoded(image=ImageOps.exif_transpose(image) if _is_turned(image) else image, stored=image, most=most)


def _is_turned(image: Image) -> bool:
    """What the EXIF orientation says; a damaged EXIF block says nothing, as in every viewer."""
    try:
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # whatever bytes can make of Pillow's reader
        return False


def _most(path: str | Path, image: Image) -> int | None:
    """The largest number of a pixel with more than 8 bits; None with 8 bits or less.

    Raises:
        DataError: The range of the numbers is nowhere said, or Pillow would drop what lies below 8 bits.
    """
    if image.mode[0] not in "IF":
        if any(";16" in str(tile) for tile in getattr(image, "tile", ())):
            raise DataError(f"{path} holds 16 bits per colour, which are not read exactly; convert it to 8 bits")
        return None
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise DataError(f"{path} holds inverted grey (white is 0) of more than 8 bits; save it with black as 0")
    if image.mode.startswith("I;16"):
        return int(2 ** tags.get(_BITS, (16,))[0] - 1)
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits to Pillow
        return 65535
    numbers = "floating-point numbers" if image.mode == "F" else "signed or 32-bit integers"
    raise DataError(f"{path} holds {numbers}, whose range the file does not say; convert it to 8 or 16 bits")


def _as_annotated(path: str | Path, found: _Decoded, size: tuple[int, int]) -> Image:
    """The one of both orientations that the annotations are of.

    Raises:
        DataError: Neither has their size.
    """
    for image in (found.image, found.stored):
        if (image.height, image.width) == tuple(size):
            return image
    height, width = found.image.height, found.image.width
    raise DataError(f"{path} has {height} x {width} pixels, its annotations are of {size[0]} x {size[1]}; mend either")


def _opaque(path: str | Path, image: Image) -> Image:
    """RGB; transparent pixels have no colour until they stand on one.

    Raises:
        DataError: There are such pixels.
    """
    if image.mode not in WITH_ALPHA and "transparency" not in image.info:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    if (np.asarray(layers.getchannel("A")) < 255).any():
        raise DataError(f"{path} has transparent pixels, which have no colour of their own; put it on a background")
    return layers.convert("RGB")


def _guarded(path: str | Path, work: Callable[[], T]) -> T:
    """Do the work on an image file, and say which file it was where that fails.

    Raises:
        DataError: It fails.
    """
    from PIL import UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Of tags and profiles beside the pixels; what is wrong with the pixels is an error.
            warnings.simplefilter("ignore")
            return work()
    except DataError:
        raise
    except UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise DataError(f"{path} is no readable image (none of {formats}); replace it or take it out") from error
    except Exception as error:  # whatever bytes can make of Pillow's readers
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path} is no readable image ({reason}); replace it or take it out") from error
