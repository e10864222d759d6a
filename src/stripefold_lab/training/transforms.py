"""What happens to an image between its file and the network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Transform = Callable[[Tensor], Tensor]
ImageTransform = Callable[[Tensor, int], Tensor]
"""From an image (C, H, W) in 0..1 and its index in the data set to another such image."""


def compose(steps: Sequence[Transform]) -> Transform:
    """One transform that does ``steps`` in their order (it pickles, as worker processes need).

    Args:
        steps: Transforms of an image (C, H, W).
    """
    return functools.partial(_apply, tuple(steps))


def _apply(steps: tuple[Transform, ...], image: Tensor) -> Tensor:
    for step in steps:
        image = step(image)
    return image


def scale_to_unit(image: Tensor) -> Tensor:
    """Bytes (C, H, W) to float32 between 0 and 1; floats pass."""
    return image if image.is_floating_point() else image.float() / 255


def to_channels(channels: int, image: Tensor) -> Tensor:
    """Bring an image (C, H, W) to 1 channel (the mean) or to 3 (a grey one repeated)."""
    if image.shape[0] == channels:
        return image
    grey = image.mean(0, keepdim=True)
    return grey.expand(channels, -1, -1)


def normalise(mean: tuple[float, ...], std: tuple[float, ...], image: Tensor) -> Tensor:
    """Subtract ``mean`` and divide by ``std``, each per channel, from an image (C, H, W)."""
    return (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def fit(size: int, image: Tensor, *, share: float = 1.0) -> Tensor:
    """Resize the shorter side to ``size / share``, then cut the middle: (C, H, W) to (C, size, size)."""
    shorter = round(size / share)
    height, width = image.shape[1:]
    if min(height, width) != shorter:
        scale = shorter / min(height, width)
        target = (max(shorter, round(height * scale)), max(shorter, round(width * scale)))
        image = resize(target, image)
    top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
    return image[:, top : top + size, left : left + size]


def resize(target: tuple[int, int], image: Tensor) -> Tensor:
    """Bilinear, antialiased when it shrinks: (C, H, W) to (C, *target)."""
    return F.interpolate(image[None], size=target, mode="bilinear", antialias=True, align_corners=False)[0]


def random_crop(padding: int, image: Tensor) -> Tensor:
    """Pad (C, H, W) with zeros on every side and cut the old size out at a random place."""
    height, width = image.shape[1:]
    top, left = torch.randint(0, 2 * padding + 1, (2,)).tolist()
    padded = F.pad(image, (padding,) * 4)
    return padded[:, top : top + height, left : left + width]


def random_flip(image: Tensor) -> Tensor:
    """Mirror left and right every second time."""
    return image.flip(2) if torch.rand(()).item() < 0.5 else image


def random_resized_crop(size: int, image: Tensor) -> Tensor:
    """A random part of 8 to 100 % of the area, sides 3:4 to 4:3, resized to (C, size, size).

    Source: Szegedy et al. 2015, section 6; ten tries, then the middle.
    """
    height, width = image.shape[1:]
    for _ in range(10):
        area = height * width * torch.empty(()).uniform_(0.08, 1.0).item()
        ratio = 2.0 ** torch.empty(()).uniform_(-0.41504, 0.41504).item()
        cut_height, cut_width = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < cut_height <= height and 0 < cut_width <= width:
            top = int(torch.randint(0, height - cut_height + 1, ()).item())
            left = int(torch.randint(0, width - cut_width + 1, ()).item())
            return resize((size, size), image[:, top : top + cut_height, left : left + cut_width])
    return fit(size, image)
