"""Noise in an image (C, H, W) of values in 0..1: pure functions, every draw from the generator that is given.

The draws do not depend on the strength, so that a stronger noise is the weaker one enlarged.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def add_gaussian(image: Tensor, deviation: float, generator: Generator) -> Tensor:
    """Normal noise on every value, clipped to 0..1.

    Args:
        image: (C, H, W).
        deviation: Its standard deviation.
        generator: Where the draws come from.
    """
    draws = torch.randn(image.shape, generator=generator, dtype=image.dtype)
    return (image + deviation * draws).clamp(0, 1)


def add_uniform(image: Tensor, width: float, generator: Generator) -> Tensor:
    """Noise between -width and width on every value, clipped to 0..1.

    Args:
        image: (C, H, W).
        width: Half the interval.
        generator: Where the draws come from.
    """
    draws = 2 * torch.rand(image.shape, generator=generator, dtype=image.dtype) - 1
    return (image + width * draws).clamp(0, 1)


def salt_and_pepper(image: Tensor, share: float, generator: Generator) -> Tensor:
    """Some values, each channel for itself, become 0 or 1.

    Args:
        image: (C, H, W).
        share: Of the values, in the mean; half of them become 1.
        generator: Where the draws come from.
    """
    hit, salt = torch.rand(2, *image.shape, generator=generator, dtype=image.dtype)
    return torch.where(hit < share, (salt < 0.5).to(image.dtype), image)
