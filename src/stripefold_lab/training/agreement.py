"""Do two detectors compute the same, before non-maximum suppression and behind it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stripefold.folding.verify import EquivalenceReport, verify
from stripefold_lab.models.heads import HeadOutputs

if TYPE_CHECKING:
    from stripefold_lab.training.boxes import Objects


BOX_TOLERANCE, SCORE_TOLERANCE = 0.01, 1e-3
"""In pixels and in probability: far above float32 noise, far below what a user would notice."""


@dataclass(frozen=True, kw_only=True)
class DetectorReport:
    """What ``verify_detector`` measured.

    Attributes:
        heads: Of the outputs before non-maximum suppression, judged by the numeric policy.
        detections: Final detections of both models.
        agreeing: Share of them (1 where there are none) that have a partner in the other model: same image and class,
            every side of the box within 0.01 pixel, the score within 0.001. A detection whose score lies within
            rounding of a threshold may have none.
        box_difference: Largest difference of a side among partners, in pixels.
        score_difference: Largest difference of a score among partners.
    """

    heads: EquivalenceReport
    detections: int
    agreeing: float
    box_difference: float
    score_difference: float

    @property
    def passed(self) -> bool:
        """Whether the heads agree."""
        return self.heads.passed

    def __str__(self) -> str:
        heads = f"heads before non-maximum suppression: {self.heads}"
        if not self.detections:
            return f"{heads}\n\nfinal detections: none on these images, in either model"
        return (
            f"{heads}\n\nfinal detections: {self.agreeing:.2%} of {self.detections} agree; boxes within "
            f"{self.box_difference:.1e} pixels, scores within {self.score_difference:.1e}"
        )


def verify_detector(
    model: nn.Module, other: nn.Module, images: Tensor, *, raise_on_mismatch: bool = True
) -> DetectorReport:
    """Compare two torchvision detectors in eval mode.

    Args:
        model: The reference, such as the training model.
        other: What should compute the same, such as the folded model; same dtype and device.
        images: (N, 3, H, W) in 0..1.
        raise_on_mismatch: Raise, or only report.

    Raises:
        VerifyError: The heads differ by more than the numeric policy allows.
    """
    heads = verify(HeadOutputs(model), HeadOutputs(other), images, raise_on_mismatch=raise_on_mismatch)
    ours, theirs = (_detect(each, images) for each in (model, other))
    found = [_partners(*pair) for pair in zip(ours, theirs, strict=True)]
    total = sum(len(each["labels"]) for each in (*ours, *theirs))
    return DetectorReport(
        heads=heads,
        detections=total,
        agreeing=2 * sum(count for count, _, _ in found) / total if total else 1.0,
        box_difference=max((box for _, box, _ in found), default=0.0),
        score_difference=max((score for _, _, score in found), default=0.0),
    )


def _detect(model: nn.Module, images: Tensor) -> list[Objects]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.inference_mode():
            found: list[Objects] = model.eval()(images)
            return found
    finally:
        for module, training in modes:
            module.training = training


def _partners(ours: Objects, theirs: Objects) -> tuple[int, float, float]:
    """How many detections of one image have a partner, and the largest differences of box and score among them."""
    free = torch.ones(len(theirs["labels"]), dtype=torch.bool, device=theirs["labels"].device)
    count, box_difference, score_difference = 0, 0.0, 0.0
    for box, score, label in zip(ours["boxes"], ours["scores"], ours["labels"], strict=True):
        sides = (theirs["boxes"] - box).abs().amax(1) if len(free) else theirs["scores"]
        scores = (theirs["scores"] - score).abs()
        fits = free & (theirs["labels"] == label) & (sides <= BOX_TOLERANCE) & (scores <= SCORE_TOLERANCE)
        if not fits.any():
            continue
        nearest = int(torch.where(fits, sides, torch.inf).argmin())
        free[nearest] = False
        count += 1
        box_difference = max(box_difference, float(sides[nearest]))
        score_difference = max(score_difference, float(scores[nearest]))
    return count, box_difference, score_difference
