"""Object detection: the task and its measures."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stripefold.distributed import gathered
from stripefold.errors import ConfigError, TrainingError
from stripefold_lab.training.task import Task

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig

MOST_DETECTIONS = 100
"""Per image, as COCO counts."""
Objects = dict[str, Tensor]


class Detection(Task):
    """The sum of the losses that torchvision's detectors give in training.

    Over several processes each draws its own anchors and proposals for its own images: as good, not the same numbers.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, **about: Any) -> None:
        super().__init__(model, config, **about)
        self.measures = BoxMeasures(group=self.group)

    def loss(self, batch: tuple[Tensor, list[Objects]]) -> Tensor:
        """Of images (N, 3, H, W) in 0..1 and the objects on each."""
        images, targets = batch
        losses: dict[str, Tensor] = self(images, targets)
        return torch.stack(list(losses.values())).sum()

    def validation_step(self, batch: tuple[Tensor, list[Objects]], batch_idx: int) -> None:
        """Measure one batch."""
        images, targets = batch
        found = self(images)
        if self.shares.counted(batch_idx):
            self.measures.update(found, targets)

    def on_validation_epoch_end(self) -> None:
        """Log the measures of the epoch."""
        found = self.measures.compute()
        self.log_dict({f"val_{name}": value for name, value in found.items()}, prog_bar=True)
        self.measures.reset()


class BoxMeasures:
    """COCO's mean average precision, over boxes, by pycocotools.

    Args:
        group: The processes whose images are measured together; None is this one alone.

    Raises:
        ConfigError: If pycocotools is not installed.

    Source: Lin et al. 2014; cocodataset.org, "Detection Evaluation".
    """

    def __init__(self, *, group: Any = None) -> None:
        from torchmetrics.detection import MeanAveragePrecision

        self._group = group
        self._seen: list[tuple[list[Objects], list[Objects]]] = []
        try:
            self._precision = MeanAveragePrecision(
                max_detection_thresholds=[1, 10, MOST_DETECTIONS], sync_on_compute=False
            )
        except ModuleNotFoundError as error:
            raise ConfigError('mAP is computed by pycocotools; run: pip install "stripefold[train]"') from error
        # A detector may give more, of low scores; COCO's rule leaves them out too.
        self._precision.warn_on_many_detections = False

    def update(self, found: list[Objects], targets: list[Objects]) -> None:
        """Add one batch.

        Args:
            found: ``boxes``, ``scores`` and ``labels`` of each image.
            targets: ``boxes``, ``labels`` and ``iscrowd`` of each image.
        """
        keys = ("boxes", "scores", "labels")
        told = [{key: each[key].detach().float().cpu() for key in keys[:2]} for each in found]
        right = [{key: each[key].cpu() for key in ("boxes", "labels", "iscrowd")} for each in targets]
        labelled = [{**boxes, "labels": each["labels"].cpu()} for boxes, each in zip(told, found, strict=True)]
        self._seen.append((labelled, right))

    def compute(self) -> dict[str, float]:
        """``map50`` (at an overlap of 0.5) and ``map`` (0.5 to 0.95) so far; no object anywhere gives zeros."""
        # Batch by batch over the processes is the order of the images: detections of one score count in their order.
        parts = gathered(self._seen, self._group, TrainingError)
        for batches in itertools.zip_longest(*parts):
            for found, right in (batch for batch in batches if batch is not None):
                self._precision.update(found, right)
        measured = self._precision.compute()
        self._precision.reset()
        # COCO says -1 for "nothing to find".
        return {"map50": max(0.0, float(measured["map_50"])), "map": max(0.0, float(measured["map"]))}

    def reset(self) -> None:
        """Forget everything."""
        self._seen.clear()


def measure_boxes(model: nn.Module, loader: Any, device: torch.device) -> tuple[dict[str, float], int]:
    """The measures of a detector in eval mode, and the number of images.

    Args:
        model: On ``device``.
        loader: Batches of images and lists of objects.
        device: Where to compute.
    """
    measures, images = BoxMeasures(), 0
    with torch.inference_mode():
        for batch, targets in loader:
            measures.update(model(batch.to(device)), targets)
            images += len(batch)
    return measures.compute(), images
