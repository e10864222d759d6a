"""Class maps: fitted to a network's size, their loss and their measures."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from stripefold.distributed import summed
from stripefold.errors import DataError, TrainingError
from stripefold_lab.datasets import IGNORED, Scene
from stripefold_lab.training.scene_data import pad, resize_nearest
from stripefold_lab.training.sources import IMAGENET_STATISTICS
from stripefold_lab.training.transforms import normalise


def fit_class_map(scene: Scene, image: Tensor, size: int, *, flip: bool) -> tuple[Tensor, Tensor]:
    """As ``SceneTask.fit``: a normalised image and a class map (size, size), whose padding does not count.

    Raises:
        DataError: If the scene has no class map.
    """
    if scene.classes is None:
        raise DataError("a scene has no class map; the task needs one per image")
    classes = pad(resize_nearest(scene.classes, image.shape[1:]), size, IGNORED).long()
    image = pad(normalise(*IMAGENET_STATISTICS, image), size, 0.0)
    return (image.flip(2), classes.flip(1)) if flip else (image, classes)


def counting(classes: Tensor) -> Tensor:
    """Which pixels of class maps count in loss and score."""
    return classes != IGNORED


def pixel_loss(logits: Tensor, classes: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits (N, classes, H, W) over the pixels of a batch that count; 0 where none does."""
    total = F.cross_entropy(logits, classes, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum")
    return total / counting(classes).sum().clamp(min=1)


class PixelMeter:
    """Mean intersection over union, accuracy and loss over all pixels that count.

    A class that occurs neither in the images nor in the predictions has no say in the mean.

    Args:
        classes: How many, the background among them.
        group: The processes whose images are measured together; None is this one alone.

    Source: Everingham et al. 2015, section 4.3 (intersection over union of all pixels of the data set).
    """

    def __init__(self, classes: int, *, group: Any = None) -> None:
        options: dict[str, Any] = {
            "num_classes": classes, "ignore_index": IGNORED, "sync_on_compute": group is not None
        }  # fmt: skip
        self.jaccard = MulticlassJaccardIndex(**options)
        self.accuracy = MulticlassAccuracy(average="micro", **options)
        self.group = group
        self.total, self.pixels = 0.0, 0

    def update(self, outputs: dict[str, Tensor], targets: Tensor) -> None:
        """Add logits (N, classes, H, W) and class maps (N, H, W)."""
        logits = outputs["out"].float()
        predicted = logits.argmax(1)
        for metric in (self.jaccard, self.accuracy):
            metric.to(logits.device).update(predicted, targets)
        self.total += float(F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
        self.pixels += int(counting(targets).sum())

    def compute(self) -> dict[str, float]:
        """``loss``, ``miou``, ``pixel_accuracy`` so far; no pixel that counts gives zeros."""
        total, pixels = summed((self.total, self.pixels), self.group, TrainingError)
        return {
            "loss": total / max(1, pixels),
            "miou": float(self.jaccard.compute()) if pixels else 0.0,
            "pixel_accuracy": float(self.accuracy.compute()) if pixels else 0.0,
        }
