"""``corrupt``: an image disturbed by a kind at a severity, the same for the same seed and index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stripefold.errors import ConfigError
from stripefold_lab.robustness import image_noise, image_quality
from stripefold_lab.robustness.kinds import KINDS, SEVERITIES
from stripefold_lab.training.seeding import derive_seed

RANDOM: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "gaussian-noise": image_noise.add_gaussian,
    "uniform-noise": image_noise.add_uniform,
    "salt-and-pepper": image_noise.salt_and_pepper,
}
FIXED: dict[str, Callable[[Tensor, float], Tensor]] = {
    "gaussian-blur": image_quality.blur,
    "pixelate": image_quality.pixelate,
    "jpeg": image_quality.compress,
    "brightness": image_quality.brighten,
    "contrast": image_quality.fade,
}


def corrupt(image: Tensor, kind: str, severity: int, *, seed: int = 0, index: int = 0) -> Tensor:
    """One image disturbed.

    Args:
        image: (C, H, W), C of 1 or 3, floats in 0..1.
        kind: A kind of the families ``noise`` and ``corruption``.
        severity: 1 to 5; 0 gives the image itself.
        seed: The noise follows from (seed, kind, index), not from the severity: a stronger noise is the weaker one
            enlarged.
        index: Which image of its data set it is.

    Returns:
        A new image of the same shape, dtype and device, in 0..1.

    Raises:
        ConfigError: If the kind is none of these, there is no such severity, or the image is of another form.
    """
    if kind not in RANDOM and kind not in FIXED:
        raise ConfigError(f"no corruption {kind!r} of an image; choose one of {', '.join([*RANDOM, *FIXED])}")
    if severity not in (0, *SEVERITIES):
        raise ConfigError(f"severity is {severity}; choose 1 to 5, or 0 for the image itself")
    if image.dim() != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
        raise ConfigError(
            f"an image to corrupt has the shape {tuple(image.shape)} and dtype {image.dtype}; give floats in 0..1, "
            "(1 or 3, height, width)"
        )
    if severity == 0:
        return image.clone()
    strength = KINDS[kind].strength(severity)
    if kind in FIXED:
        return FIXED[kind](image, strength)
    generator = torch.Generator().manual_seed(derive_seed(seed, f"corruption, {kind}", index))
    return RANDOM[kind](image.cpu(), strength, generator).to(image.device)


class Corruption:
    """A change of a data set's images by their index, as ``PlainImages.changed`` and ``PlainScenes.changed`` take it.

    Args:
        kind: As for ``corrupt``.
        severity: Likewise.
        seed: Likewise.
    """

    def __init__(self, kind: str, severity: int, seed: int) -> None:
        self._options: dict[str, Any] = {"kind": kind, "severity": severity, "seed": seed}

    def __call__(self, image: Tensor, index: int) -> Tensor:
        """The image (C, H, W) disturbed."""
        return corrupt(image, **self._options, index=index)
