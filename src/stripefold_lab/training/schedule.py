"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig


def rate_factor(config: TrainConfig, steps_per_epoch: int, step: int) -> float:
    """What the peak learning rate is multiplied by at ``step`` (from 0).

    Args:
        config: ``schedule``, ``milestones``, ``decay``, ``warmup_epochs`` and ``epochs`` are read.
        steps_per_epoch: Steps of one epoch.
        step: Global step.

    >>> from stripefold_lab.training.config import TrainConfig
    >>> recipe = TrainConfig(epochs=4, schedule="step", milestones=[2], decay=0.1)
    >>> [rate_factor(recipe, 1, step) for step in range(4)]
    [1.0, 1.0, 0.1, 0.1]
    """
    # At most half of the run, so that a recipe tried out for one epoch still ends at a low rate.
    warmup = min(config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in config.milestones)
        return float(config.decay**passed)
    if config.schedule == "cosine":
        total = max(1, config.epochs * steps_per_epoch - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / total)))
    return 1.0
