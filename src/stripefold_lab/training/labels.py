"""Classes of whole images: their loss, and how often a network is right."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripefold.distributed import summed
from stripefold.errors import TrainingError


def label_loss(
    network: nn.Module, images: Tensor, labels: Tensor, *, smoothing: float = 0.0, mixup: float = 0.0
) -> Tensor:
    """Mean cross-entropy of a network's logits (N, classes) for images (N, C, H, W) and labels (N,), a scalar."""
    if not mixup:
        return F.cross_entropy(network(images), labels, label_smoothing=smoothing)
    mixed, others, share = mix(images, labels, mixup)
    logits = network(mixed)
    losses = [F.cross_entropy(logits, target, label_smoothing=smoothing) for target in (labels, others)]
    return share * losses[0] + (1 - share) * losses[1]


def mix(images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor, float]:
    """Every image mixed with another of its batch, in one proportion drawn from Beta(alpha, alpha).

    Args:
        images: (N, C, H, W).
        labels: (N,).
        alpha: Both parameters of the beta distribution.

    Returns:
        The mixed images, the other images' labels (N,), and the share of the images themselves.

    Source: Zhang et al. 2018 (arXiv 1710.09412), Algorithm 1.
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    order = torch.randperm(len(images)).to(images.device)
    return share * images + (1 - share) * images[order], labels[order], share


class LabelMeter:
    """Share of the images whose largest logit is the right class, and mean cross-entropy in nats.

    Args:
        group: The processes whose images are measured together; None is this one alone.
    """

    def __init__(self, *, group: Any = None) -> None:
        self._group = group
        self._hits, self._loss, self._images = 0, 0.0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add logits (N, classes) and labels (N,)."""
        logits = outputs.float()
        self._hits += int((logits.argmax(1) == targets).sum())
        self._loss += float(F.cross_entropy(logits, targets, reduction="sum"))
        self._images += len(targets)

    def compute(self) -> dict[str, float]:
        """``loss`` and ``accuracy`` so far."""
        hits, loss, images = summed((self._hits, self._loss, self._images), self._group, TrainingError)
        return {"loss": loss / images, "accuracy": hits / images}
