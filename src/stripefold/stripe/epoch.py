"""The numbers of one gate at one epoch: what a trajectory holds a row of."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from torch import Tensor

from stripefold.stripe.layer import LayerStripes


@dataclass(frozen=True, kw_only=True)
class EpochStripes:
    """The numbers of one gate at one epoch; differences are to the epoch recorded before, None at the first.

    Attributes:
        stripe_index: Between-channel variance over total variance.
        within_std_mean: Standard deviation over the images, mean over the channels.
        within_std_max: The largest over the channels.
        within_over_mean: The former over the mean of |v|; None where that is 0.
        mean: Mean of v over images and channels.
        between_std: Standard deviation of the channels' means.
        class_share: Share of the variance over images that the class explains, where classes were counted.
        first_difference: Mean over the kept images and the channels of |v - v before|.
        mean_difference: Mean over the channels of |mean v - mean v before|; what of it is common to all images.
    """

    stripe_index: float
    within_std_mean: float
    within_std_max: float
    within_over_mean: float | None
    mean: float
    between_std: float
    class_share: float | None
    first_difference: float | None
    mean_difference: float | None


QUANTITIES: tuple[str, ...] = tuple(field.name for field in fields(EpochStripes))


def numbers(layer: LayerStripes, before: tuple[Tensor, Tensor] | None) -> EpochStripes:
    """The row of one gate.

    Args:
        layer: What was seen of it.
        before: The sample and the mean of the epoch recorded before, if there was one.
    """
    return EpochStripes(
        stripe_index=layer.stripe_index,
        within_std_mean=float(layer.within_std.mean()),
        within_std_max=float(layer.within_std.max()),
        within_over_mean=layer.within_over_mean,
        mean=float(layer.mean.mean()),
        between_std=layer.between_variance**0.5,
        class_share=layer.class_share,
        first_difference=None if before is None else _mean_difference(layer.sample, before[0]),
        mean_difference=None if before is None else _mean_difference(layer.mean, before[1]),
    )


def _mean_difference(now: Tensor, before: Tensor) -> float | None:
    difference = float((now.double() - before.double()).abs().mean()) if now.numel() else math.nan
    return difference if math.isfinite(difference) else None
