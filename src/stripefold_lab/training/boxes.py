"""Boxes: fitted to a network's size, and their measures."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from stripefold.distributed import gathered
from stripefold.errors import ConfigError, DataError, TrainingError
from stripefold_lab.datasets import Scene
from stripefold_lab.training.scene_data import pad, resize_nearest

MOST_DETECTIONS = 100
"""Per image, as COCO counts."""
Objects = dict[str, Tensor]


def fit_boxes(
    scene: Scene, image: Tensor, size: int, *, flip: bool, train: bool, masks: bool
) -> tuple[Tensor, Objects]:
    """As ``SceneTask.fit``: an image in 0..1 and the boxes on it, with masks where these are wanted.

    Training leaves groups of objects out; a test marks them.

    Raises:
        DataError: If the scene has no masks, and they are wanted.
    """
    inner = image.shape[1:]
    ratio = torch.tensor([inner[1] / scene.image.shape[2], inner[0] / scene.image.shape[1]] * 2)
    kept = ~scene.crowd if train else torch.ones_like(scene.crowd)
    target = {"boxes": (scene.boxes * ratio)[kept], "labels": scene.labels[kept]}
    if not train:
        target["iscrowd"] = scene.crowd.long()
    if masks:
        if scene.masks is None:
            raise DataError("a scene has boxes without masks; Mask R-CNN needs a mask per object")
        target["masks"] = pad(resize_nearest(scene.masks[kept].to(torch.uint8), inner), size, 0)
    image = pad(image, size, 0.0)
    return _mirror(image, target) if flip else (image, target)


def _mirror(image: Tensor, target: Objects) -> tuple[Tensor, Objects]:
    left, top, right, bottom = target["boxes"].unbind(1)
    mirrored = {"boxes": torch.stack([image.shape[2] - right, top, image.shape[2] - left, bottom], 1)}
    if "masks" in target:
        mirrored["masks"] = target["masks"].flip(2)
    return image.flip(2), {**target, **mirrored}


class BoxMeter:
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

    def update(self, outputs: list[Objects], targets: list[Objects]) -> None:
        """Add ``boxes``, ``scores`` and ``labels`` of each image, beside its ``boxes``, ``labels`` and ``iscrowd``."""
        found = [
            {"labels": each["labels"].cpu(), **{key: each[key].detach().float().cpu() for key in ("boxes", "scores")}}
            for each in outputs
        ]
        right = [{key: each[key].cpu() for key in ("boxes", "labels", "iscrowd")} for each in targets]
        self._seen.append((found, right))

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
