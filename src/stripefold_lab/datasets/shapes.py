"""Drawn scenes: discs, squares and triangles in any colour on a textured ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stripefold.errors import DataError
from stripefold_lab.datasets.scene import Scene, box_of

CLASSES = ("disc", "square", "triangle")
MOST_SHAPES = 3
TRIES = 20
"""How often a place is looked for before a scene does with fewer shapes."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Shapes:
    """Scenes of one to three shapes that do not overlap; scene ``i`` follows from (seed, i) and the size alone.

    A colour says nothing about the class, so that a network has to learn the forms.

    Attributes:
        count: How many scenes.
        size: Side of the images in pixels, at least 32.
        seed: Two sets of different seeds share no scene.

    Raises:
        DataError: The size is below 32, or the count below 1.

    >>> scene = Shapes(count=4, size=64, seed=0)[2]
    >>> tuple(scene.image.shape), len(scene.boxes) == len(scene.labels) > 0
    ((3, 64, 64), True)
    """

    count: int
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 32 or self.count < 1:
            raise DataError(f"shapes of size {self.size}, count {self.count}: give a size from 32 and a count from 1")

    @property
    def classes(self) -> tuple[str, ...]:
        """The forms."""
        return CLASSES

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        chance = np.random.default_rng([self.seed, index])
        image = _ground(chance, self.size)
        objects = _place(chance, self.size)
        for _, mask in objects:
            image[:, mask] = _contrasting(chance, image[:, mask])[:, None]
        noise = chance.normal(0, 6, image.shape)
        labels = torch.tensor([label for label, _ in objects], dtype=torch.int64)
        masks = torch.from_numpy(np.stack([mask for _, mask in objects]))
        return Scene(
            image=torch.from_numpy(np.clip(image + noise, 0, 255).astype(np.uint8)),
            boxes=torch.stack([box_of(mask) for mask in masks]),
            labels=labels,
            masks=masks,
            crowd=torch.zeros(len(labels), dtype=torch.bool),
            classes=class_map(masks, labels),
        )


def class_map(masks: Tensor, labels: Tensor) -> Tensor:
    """The class of each pixel, (H, W) uint8, of objects (n, H, W) with labels (n,); a later object covers earlier."""
    found = torch.zeros(masks.shape[1:], dtype=torch.uint8)
    for mask, label in zip(masks, labels, strict=True):
        found[mask] = int(label)
    return found


def _ground(chance: np.random.Generator, size: int) -> NDArray[np.float64]:
    """A colour that changes linearly over the image, (3, size, size), 0 to 255."""
    corner, right, down = chance.uniform(0, 255, 3), chance.uniform(-80, 80, 3), chance.uniform(-80, 80, 3)
    ramp = np.linspace(-0.5, 0.5, size)
    return corner[:, None, None] + right[:, None, None] * ramp[None, None] + down[:, None, None] * ramp[None, :, None]


def _contrasting(chance: np.random.Generator, behind: NDArray[np.float64]) -> NDArray[np.float64]:
    """A colour (3,) that can be told from what lies behind it, (3, pixels)."""
    ground = np.clip(behind, 0, 255).mean(1)
    while True:
        colour = chance.uniform(0, 255, 3)
        if np.abs(colour - ground).max() > 90:
            return colour


def _place(chance: np.random.Generator, size: int) -> list[tuple[int, Mask]]:
    """Shapes with their labels; none touches another."""
    placed: list[tuple[int, Mask]] = []
    taken = np.zeros((size, size), dtype=bool)
    wanted = int(chance.integers(1, MOST_SHAPES + 1))
    for _ in range(TRIES):
        if len(placed) == wanted:
            break
        label = int(chance.integers(1, len(CLASSES) + 1))
        radius = chance.uniform(0.11, 0.2) * size
        x, y = chance.uniform(radius + 1, size - radius - 1, 2)
        if taken[
            max(0, int(y - radius) - 1) : int(y + radius) + 3, max(0, int(x - radius) - 1) : int(x + radius) + 3
        ].any():
            continue
        mask = _draw(label, size, (x, y), radius)
        taken |= mask
        placed.append((label, mask))
    return placed


def _draw(label: int, size: int, middle: tuple[float, float], radius: float) -> Mask:
    y, x = np.mgrid[:size, :size] + 0.5
    x, y = x - middle[0], y - middle[1]
    if CLASSES[label - 1] == "disc":
        return np.asarray(x**2 + y**2 <= radius**2)
    if CLASSES[label - 1] == "square":
        return np.asarray(np.maximum(np.abs(x), np.abs(y)) <= 0.85 * radius)
    # Point up: the left and right sides fall two down per one across.
    return np.asarray((y <= 0.8 * radius) & (2 * np.abs(x) <= y + radius))
