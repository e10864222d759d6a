"""What was seen of one gate: moments, a bounded sample, and the numbers that say how striped it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stripefold.errors import ObserveError
from stripefold.stripe.moments import Moments

# Of the moments themselves, in units of the float64 spacing.
_MOMENT_ROUNDING = 8.0


@dataclass(frozen=True, kw_only=True)
class LayerStripes:
    """The scale vectors v of one gate over all images; tensors are on the CPU, in float64 where not said otherwise.

    Attributes:
        name: The gate's unique name: the dotted path of the module whose product it is.
        kind: Class name of that module.
        depth: Position in the order of computation, 0 (input) to 1 (output).
        channels: C; for a gate that weighs K branches, K times the channels of one, branch by branch.
        images: Number n of vectors seen: one per image, more where a model folds frames or windows into the batch.
        mean: (C,) mean of v over the images.
        m2: (C,) sum over the images of (v - mean)^2.
        sample: (K, C) float32, v of the first K = min(n, keep) images.
        keep: Bound of the sample.
        split: Number of branches that the gate weighs; 1 for a usual gate.
        dtype: In which the model computed v, such as "float32".
        class_means: (classes, C), zero for a class without images, or None where classes were not asked for.
        class_counts: (classes,) int64, or None.
        descriptor_mean: (D,) mean of what the gate's own function is computed from, or None where no module takes it.
    """

    name: str
    kind: str
    depth: float
    channels: int
    images: int
    mean: Tensor
    m2: Tensor
    sample: Tensor
    keep: int = 256
    split: int = 1
    dtype: str = "float32"
    class_means: Tensor | None = None
    class_counts: Tensor | None = None
    descriptor_mean: Tensor | None = None

    @property
    def within_variance(self) -> Tensor:
        """(C,) variance of each channel over the images."""
        return self.m2 / self.images

    @property
    def within_std(self) -> Tensor:
        """(C,) standard deviation of each channel over the images."""
        return self.within_variance.sqrt()

    @property
    def between_variance(self) -> float:
        """Variance of the channels' means over the channels."""
        return float(self.mean.var(correction=0))

    @property
    def total_variance(self) -> float:
        """Variance of all values, over images and channels: between plus the mean of within."""
        return self.between_variance + float(self.within_variance.mean())

    @property
    def stripe_index(self) -> float:
        """Between-channel variance over total variance: 1 where every image gets the same vector.

        0/0 counts as 1 (``index_flag`` is "constant"); the zero is a spread no larger than rounding.

        Source: ASR, Huang et al. 2024, section 2 (what it shows in pictures); design of stripefold for the number.
        """
        return 1.0 if self._is_constant else self.between_variance / self.total_variance

    @property
    def index_flag(self) -> str:
        """Why the index says less than it seems: "constant" (0/0), "one image", or ""."""
        if self._is_constant:
            return "constant"
        return "one image" if self.images == 1 else ""

    @property
    def within_over_mean(self) -> float | None:
        """Mean of the channels' standard deviations over the mean of their absolute means; None where that is 0."""
        size = float(self.mean.abs().mean())
        return float(self.within_std.mean()) / size if size else None

    @property
    def moving_channels(self) -> float:
        """Effective number of channels that vary over the images: (sum of variances)^2 / sum of their squares.

        C where all vary alike, 1 where one does; 0 for a gate that does not vary. Beside it, a small
        ``within_over_mean`` may be the mean over many still channels and a few that move far.
        """
        squares = float(self.within_variance.square().sum())
        return 0.0 if self._is_still or not squares else float(self.within_variance.sum()) ** 2 / squares

    @property
    def largest_share(self) -> float:
        """Share of the variance over the images in the one channel that varies most; 0 for a gate that does not."""
        total = float(self.within_variance.sum())
        return 0.0 if self._is_still or not total else float(self.within_variance.max()) / total

    @property
    def class_share(self) -> float | None:
        """Share of the variance over images that the class explains (eta squared), 0 to 1.

        None without classes, and for a gate that does not vary.
        """
        if self.class_means is None or self.class_counts is None or self._is_still:
            return None
        weights = self.class_counts.to(torch.float64)[:, None]
        return min(1.0, float((weights * (self.class_means - self.mean).square()).sum() / self.m2.sum()))

    @property
    def _rounding(self) -> float:
        own: float = torch.finfo(getattr(torch, self.dtype)).eps
        return max(own, _MOMENT_ROUNDING * torch.finfo(torch.float64).eps) * float(self.mean.abs().max())

    @property
    def _is_constant(self) -> bool:
        return bool(self.total_variance**0.5 <= self._rounding)

    @property
    def _is_still(self) -> bool:
        return bool(float(self.within_variance.mean()) ** 0.5 <= self._rounding)

    def merge(self, other: LayerStripes) -> LayerStripes:
        """The same gate over this one's images, then the other's.

        Raises:
            ObserveError: It is another gate.
        """
        if (self.name, self.channels) != (other.name, other.channels):
            raise ObserveError(
                f"cannot merge the gate {self.name!r} ({self.channels} channels) with {other.name!r} "
                f"({other.channels} channels): merge observations of one and the same model"
            )
        merged = Moments(self.images, self.mean, self.m2).merge(Moments(other.images, other.mean, other.m2))
        keep = max(self.keep, other.keep)
        means, counts = _merged_classes(self, other)
        return replace(
            self,
            images=merged.count,
            mean=merged.mean,
            m2=merged.m2,
            keep=keep,
            sample=torch.cat([self.sample, other.sample])[:keep],
            class_means=means,
            class_counts=counts,
            descriptor_mean=_merged_descriptor(self, other),
        )


def _merged_classes(first: LayerStripes, second: LayerStripes) -> tuple[Tensor | None, Tensor | None]:
    if first.class_means is None or second.class_means is None:
        return None, None
    classes = max(len(first.class_means), len(second.class_means))
    sums = torch.zeros(classes, first.channels, dtype=torch.float64)
    counts = torch.zeros(classes, dtype=torch.int64)
    for part in (first, second):
        means, own = part.class_means, part.class_counts
        if means is not None and own is not None:
            sums[: len(own)] += means * own[:, None]
            counts[: len(own)] += own
    return sums / counts.clamp(min=1)[:, None], counts


def _merged_descriptor(first: LayerStripes, second: LayerStripes) -> Tensor | None:
    if first.descriptor_mean is None or second.descriptor_mean is None:
        return None
    share = second.images / (first.images + second.images)
    return first.descriptor_mean + (second.descriptor_mean - first.descriptor_mean) * share
