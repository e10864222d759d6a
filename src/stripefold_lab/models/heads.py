"""Raw outputs of a detector's heads, before non-maximum suppression, to compare number by number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class HeadOutputs(nn.Module):
    """A torchvision detector without its non-maximum suppression.

    The detections themselves are lists whose length may hang on the last bit of a score. The heads' outputs do not:
    one-stage detectors give theirs for every anchor; of two-stage ones, the first stage gives its for every anchor,
    and the second is asked about boxes that cover the image, the same for every model.

    Args:
        detector: Faster R-CNN, Mask R-CNN, RetinaNet, FCOS, SSD or SSDlite of torchvision; it is shared, not copied.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = detector

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Outputs of every head for images (N, 3, H, W) in 0..1."""
        batch, _ = self.detector.transform(list(images), None)
        features = self.detector.backbone(batch.tensors)
        features = {"0": features} if isinstance(features, Tensor) else features
        maps = list(features.values())
        if not hasattr(self.detector, "rpn"):
            found: dict[str, Any] = self.detector.head(maps)
            return found
        objectness, deltas = self.detector.rpn.head(maps)
        return {"objectness": objectness, "deltas": deltas, **self._second_stage(features, batch)}

    def _second_stage(self, features: dict[str, Tensor], batch: Any) -> dict[str, Tensor]:
        heads = self.detector.roi_heads
        boxes = [cover(height, width).to(batch.tensors) for height, width in batch.image_sizes]
        pooled = heads.box_head(heads.box_roi_pool(features, boxes, batch.image_sizes))
        scores, regression = heads.box_predictor(pooled)
        found = {"scores": scores, "regression": regression}
        if heads.has_mask():
            pooled = heads.mask_head(heads.mask_roi_pool(features, boxes, batch.image_sizes))
            found["masks"] = heads.mask_predictor(pooled)
        return found


def cover(height: float, width: float) -> Tensor:
    """Boxes (n, 4) of three sizes that cover an image: its quarters' sides, its halves', and the whole.

    >>> len(cover(64, 64))
    21
    """
    found = []
    for parts in (4, 2, 1):
        top, left = torch.meshgrid(torch.arange(parts), torch.arange(parts), indexing="ij")
        corners = torch.stack([left, top, left + 1, top + 1], -1).reshape(-1, 4)
        found.append(corners * torch.tensor([width, height] * 2) / parts)
    return torch.cat(found)
