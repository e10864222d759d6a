"""Semantic segmentation: the task and its measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from stripefold.distributed import summed
from stripefold.errors import TrainingError
from stripefold_lab.datasets import IGNORED
from stripefold_lab.training.task import Task

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig

AUXILIARY = 0.5
"""Weight of the auxiliary head's loss, as in torchvision's reference recipe."""


class Segmentation(Task):
    """Cross-entropy over pixels; the network gives ``{"out": logits}`` (N, classes, H, W), and maybe ``aux``."""

    def __init__(self, model: nn.Module, config: TrainConfig, **about: Any) -> None:
        super().__init__(model, config, **about)
        self.measures = PixelMeasures(self.classes, group=self.group)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean over the pixels that count, of images (N, 3, H, W) and class maps (N, H, W)."""
        images, classes = batch
        outputs: dict[str, Tensor] = self(images)
        smoothing = self.config.label_smoothing
        main = pixel_loss(outputs["out"], classes, smoothing)
        return main if "aux" not in outputs else main + AUXILIARY * pixel_loss(outputs["aux"], classes, smoothing)

    def weight(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """As of every task, but in pixels that count, because the loss is their mean."""
        pixels = (batch[1] != IGNORED).sum() * (self.shares.counted(batch_idx) > 0)
        everywhere = pixels.clone()
        dist.all_reduce(everywhere, group=self.group)
        return pixels * self.trainer.world_size / everywhere.clamp(min=1)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure one batch."""
        images, classes = batch
        outputs = self(images)
        if self.shares.counted(batch_idx):
            self.measures.update(outputs, classes)

    def on_validation_epoch_end(self) -> None:
        """Log the measures of the epoch."""
        found = self.measures.compute()
        self.log_dict({f"val_{name}": value for name, value in found.items()}, prog_bar=True)
        self.measures.reset()


def pixel_loss(logits: Tensor, classes: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits (N, classes, H, W) over the pixels of a batch that count; 0 where none does."""
    total = F.cross_entropy(logits, classes, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum")
    return total / (classes != IGNORED).sum().clamp(min=1)


class PixelMeasures(nn.Module):
    """Mean intersection over union, accuracy and loss over all pixels that count.

    A class that occurs neither in the images nor in the predictions has no say in the mean.

    Args:
        classes: How many, the background among them.
        group: The processes whose images are measured together; None is this one alone.

    Source: Everingham et al. 2015, section 4.3 (intersection over union of all pixels of the data set).
    """

    def __init__(self, classes: int, *, group: Any = None) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "num_classes": classes, "ignore_index": IGNORED, "sync_on_compute": group is not None
        }  # fmt: skip
        self.jaccard = MulticlassJaccardIndex(**options)
        self.accuracy = MulticlassAccuracy(average="micro", **options)
        self.group = group
        self.total = 0.0
        self.pixels = 0

    def update(self, outputs: Any, classes: Tensor) -> None:
        """Add one batch.

        Args:
            outputs: What the network gave.
            classes: (N, H, W).
        """
        logits = outputs["out"].float()
        predicted = logits.argmax(1)
        self.jaccard.update(predicted, classes)
        self.accuracy.update(predicted, classes)
        self.total += float(F.cross_entropy(logits, classes, ignore_index=IGNORED, reduction="sum"))
        self.pixels += int((classes != IGNORED).sum())

    def compute(self) -> dict[str, float]:
        """``loss``, ``miou``, ``pixel_accuracy`` so far; no pixel that counts gives zeros."""
        total, pixels = summed((self.total, self.pixels), self.group, TrainingError)
        return {
            "loss": total / max(1, pixels),
            "miou": float(self.jaccard.compute()) if pixels else 0.0,
            "pixel_accuracy": float(self.accuracy.compute()) if pixels else 0.0,
        }

    def reset(self) -> None:
        """Forget everything."""
        self.jaccard.reset()
        self.accuracy.reset()
        self.total, self.pixels = 0.0, 0


def measure_pixels(model: nn.Module, loader: Any, device: torch.device, classes: int) -> tuple[dict[str, float], int]:
    """The measures of a segmentation network in eval mode, and the number of images.

    Args:
        model: On ``device``.
        loader: Batches of images and class maps.
        device: Where to compute.
        classes: How many, the background among them.
    """
    measures, images = PixelMeasures(classes).to(device), 0
    with torch.inference_mode():
        for batch, target in loader:
            measures.update(model(batch.to(device)), target.to(device))
            images += len(batch)
        return measures.compute(), images
