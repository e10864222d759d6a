"""Common corruptions of an image (C, H, W) of values in 0..1: pure functions without any randomness.

They are torchvision's operations, kept in 0..1; pixelating is torch's resampling.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

REFERENCE_SIDE = 32


def blur(image: Tensor, deviation: float) -> Tensor:
    """Gaussian blur.

    Args:
        image: (C, H, W).
        deviation: In pixels of an image of side 32; larger images are blurred in proportion, smaller ones by as many
            pixels.
    """
    from torchvision.transforms.v2 import functional

    sigma = deviation * max(1.0, min(image.shape[1:]) / REFERENCE_SIDE)
    # Reflection cannot reach beyond the image.
    reach = min(math.ceil(3 * sigma), min(image.shape[1:]) - 1)
    blurred: Tensor = functional.gaussian_blur(image, kernel_size=[2 * reach + 1] * 2, sigma=[sigma, sigma])
    return blurred.clamp(0, 1)


def pixelate(image: Tensor, share: float) -> Tensor:
    """Fewer pixels, each the mean of what it stands for, brought back to the old size: both ways a box filter.

    Args:
        image: (C, H, W).
        share: Of either side.
    """
    height, width = image.shape[1:]
    fewer = (max(1, round(share * height)), max(1, round(share * width)))
    small = F.interpolate(image[None], size=fewer, mode="area")
    return F.interpolate(small, size=(height, width), mode="area")[0].clamp(0, 1)


def compress(image: Tensor, quality: float) -> Tensor:
    """Write as JPEG and read again; values become bytes on the way.

    Args:
        image: (C, H, W), C of 1 or 3.
        quality: 1 to 100.
    """
    from torchvision.transforms.v2 import functional

    stored = (image * 255).round().to(torch.uint8)
    return functional.jpeg(stored.cpu(), quality=round(quality)).to(image) / 255


def brighten(image: Tensor, factor: float) -> Tensor:
    """Every value times ``factor``, cut at 1.

    Args:
        image: (C, H, W), C of 1 or 3.
        factor: Above 1.
    """
    from torchvision.transforms.v2 import functional

    bright: Tensor = functional.adjust_brightness(image, factor)
    return bright.clamp(0, 1)


def fade(image: Tensor, factor: float) -> Tensor:
    """Less contrast: every value moves towards the image's mean grey.

    Args:
        image: (C, H, W), C of 1 or 3.
        factor: What is left of the distance.
    """
    from torchvision.transforms.v2 import functional

    faded: Tensor = functional.adjust_contrast(image, factor)
    return faded.clamp(0, 1)
