"""A folder of images as the input of a network, with the preprocessing said in words."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from stripefold.errors import DataError
from stripefold.inputs import check_regular
from stripefold.onnx.session import Array

Fit = Literal["stretch", "crop", "pad"]
Order = Literal["rgb", "bgr", "gray"]
ImageLayout = Literal["nchw", "nhwc"]
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
_CHOICES = {"fit": get_args(Fit), "order": get_args(Order), "layout": (*get_args(ImageLayout), None)}


@dataclass(frozen=True)
class Images:
    """Images of a folder, in the order of their names, prepared as a network wants them.

    Attributes:
        folder: searched with its subfolders.
        size: (height, width); None takes what the network fixes.
        fit: "stretch" to the size, "crop" the middle after scaling the shorter side, "pad" on the right and below after
            scaling to fit inside.
        scale: the 0..255 of a file are multiplied by it.
        mean: subtracted after scaling, one for all channels or one for each.
        std: divided by afterwards.
        order: of the channels.
        layout: None reads it from the network's input.
        labels: the first folder below is the class, numbered in the order of names.
        batch: images together; a network of fixed batch size decides itself.
    """

    folder: str | os.PathLike[str]
    size: tuple[int, int] | None = None
    fit: Fit = "stretch"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    order: Order = "rgb"
    layout: ImageLayout | None = None
    labels: bool = False
    batch: int = 16

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                known = ", ".join(str(choice) for choice in choices if choice)
                raise DataError(f"{name}={getattr(self, name)!r}: choose one of {known}")
        channels = 1 if self.order == "gray" else 3
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise DataError(f"{name} has {len(values)} values: give 1, or {channels} for {self.order} images")
        if any(value == 0 for value in self.std) or self.batch < 1 or (self.size and min(self.size) < 1):
            raise DataError("std must not be 0, and size and batch are whole numbers from 1")

    def batches(self, shape: Sequence[int | None] | None, dtype: np.dtype[Any]) -> Iterator[Any]:
        """Batches, or (batch, labels) pairs.

        Args:
            shape: of the network's input, None for a size that is open.
            dtype: of the network's input.

        Raises:
            DataError: no images, one that cannot be read, or no size.
        """
        files = self.files()
        layout = self.layout or _layout(shape)
        size = self.size or _size(shape, layout)
        batch = (shape[0] if shape else None) or self.batch
        classes = self._classes(files) if self.labels else None
        for start in range(0, len(files), batch):
            part = files[start : start + batch]
            if shape and shape[0] and len(part) < batch:
                return  # a network of fixed batch size cannot take the rest
            images = np.stack([self._image(path, size, layout) for path in part]).astype(dtype)
            yield images if classes is None else (images, classes[start : start + batch])

    def files(self) -> list[Path]:
        """The images' paths, in the order of their names.

        Raises:
            DataError: there are none.
        """
        folder = Path(self.folder)
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and not path.is_dir())
        found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
        if not found:
            raise DataError(f"{folder} holds no images ({', '.join(sorted(_SUFFIXES))})")
        return found

    def _classes(self, files: Sequence[Path]) -> Array:
        names = [path.relative_to(self.folder).parts for path in files]
        loose = next((parts[0] for parts in names if len(parts) < 2), None)
        if loose is not None:
            raise DataError(
                f"labels: {loose} lies in {self.folder} itself; put every image into the folder of its class"
            )
        order = {name: index for index, name in enumerate(sorted({parts[0] for parts in names}))}
        return np.asarray([order[parts[0]] for parts in names])

    def _image(self, path: Path, size: tuple[int, int], layout: ImageLayout) -> Array:
        pixels = self._pixels(path, size) * np.float32(self.scale)
        pixels = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        prepared: Array = pixels.transpose(2, 0, 1) if layout == "nchw" else pixels
        return prepared

    def _pixels(self, path: Path, size: tuple[int, int]) -> Array:
        """The image (height, width, channels) in the wanted size, 0 to 255."""
        try:
            from PIL import Image
        except ImportError as error:
            raise DataError("images are read with Pillow, which is not installed: pip install pillow") from error
        check_regular(path, DataError)
        try:
            with Image.open(path) as file:
                image = self._fitted(file.convert("L" if self.order == "gray" else "RGB"), size)
        except Exception as error:  # Pillow raises many classes, also for hostile files
            raise DataError(f"{path} cannot be read as an image: {error}") from error
        pixels = np.asarray(image, np.float32).reshape(*size, -1)
        return pixels[:, :, ::-1] if self.order == "bgr" else pixels

    def _fitted(self, image: Any, size: tuple[int, int]) -> Any:
        from PIL import Image, ImageOps

        height, width = size
        if self.fit == "crop":
            return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        if self.fit == "stretch":
            return image.resize((width, height), Image.Resampling.BILINEAR)
        ratio = min(height / image.height, width / image.width)
        inner = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
        whole = Image.new(image.mode, (width, height))
        whole.paste(image.resize(inner, Image.Resampling.BILINEAR), (0, 0))
        return whole


def _layout(shape: Sequence[int | None] | None) -> ImageLayout:
    if shape is None or len(shape) != 4:
        raise DataError(f"images need a network whose first input has four axes, this one has {shape}")
    return "nhwc" if shape[-1] in (1, 3) and shape[1] not in (1, 3) else "nchw"


def _size(shape: Sequence[int | None] | None, layout: ImageLayout) -> tuple[int, int]:
    sizes = tuple(shape or ())[2:] if layout == "nchw" else tuple(shape or ())[1:3]
    if len(sizes) != 2 or sizes[0] is None or sizes[1] is None:
        raise DataError("the network takes images of any size: say which, such as size=48x192")
    return sizes[0], sizes[1]
