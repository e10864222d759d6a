"""What a network says about some test images, beside the truth, for a person to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.atomic import atomic_path
from stripefold_lab.training import TrainResult
from stripefold_lab.training.data import load_data
from stripefold_lab.training.fixed import fixed_images
from stripefold_lab.training.sources import IMAGENET_STATISTICS

SHOWN = 6
SCORE = 0.4
"""Boxes below it are not drawn."""
COLOURS = torch.tensor([
    [0, 0, 0], [128, 180, 230], [150, 75, 60], [200, 200, 140], [120, 70, 130], [230, 90, 160], [100, 140, 40],
    [220, 200, 60], [70, 110, 110], [40, 60, 180], [210, 40, 40], [40, 190, 190], [240, 130, 30],
], dtype=torch.uint8)  # fmt: skip
"""Of the classes; black is the background, and what does not count."""


def draw_predictions(result: TrainResult, file: Path) -> None:
    """A row per image: the image, the truth, what the deployed network says.

    Args:
        result: A run of segmentation or detection.
        file: A JPEG.
    """
    data: Any = load_data(result.config)
    chosen = fixed_images(data, SHOWN, SHOWN).dataset
    pairs = [chosen[index] for index in range(len(chosen))]  # type: ignore[arg-type]
    draw = _segmented if result.config.task == "segmentation" else _detected
    rows = [torch.cat(draw(result.folded.eval(), image, target), dim=2) for image, target in pairs]
    _save(torch.cat(rows, dim=1), file)


def _segmented(model: nn.Module, image: Tensor, target: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found = model(image[None])
    logits = found["out"] if isinstance(found, dict) else found
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET_STATISTICS)
    counted = target != 255
    said = torch.where(counted, logits[0].argmax(0), 0)
    return [_bytes(image * std + mean), *(_coloured(classes) for classes in (torch.where(counted, target, 0), said))]


def _coloured(classes: Tensor) -> Tensor:
    return COLOURS[classes.clamp(max=len(COLOURS) - 1)].permute(2, 0, 1)


def _detected(model: nn.Module, image: Tensor, target: dict[str, Tensor]) -> list[Tensor]:
    from torchvision.utils import draw_bounding_boxes

    with torch.no_grad():
        found = model([image])[0]
    kept = found["scores"] >= SCORE
    said = {name: found[name][kept] for name in ("boxes", "labels")}
    plain = _bytes(image)
    return [
        plain,
        *(
            draw_bounding_boxes(
                plain, each["boxes"], colors=[tuple(COLOURS[k].tolist()) for k in each["labels"]], width=2
            )
            if len(each["boxes"])
            else plain
            for each in (target, said)
        ),
    ]


def _bytes(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _save(picture: Tensor, file: Path) -> None:
    from PIL import Image

    with atomic_path(file) as temporary:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(temporary, format="JPEG", quality=85)
