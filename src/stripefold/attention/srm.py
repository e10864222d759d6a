"""Style-based recalibration: mean and deviation of each channel, normalised over the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripefold.attention.base import ChannelAttention
from stripefold.attention.gates import GATES, GateName, checked_gate
from stripefold.attention.layers import checked_positive
from stripefold.attention.pooling import deviation_pool, mean_pool
from stripefold.attention.registry import register_attention
from stripefold.attention.saddles import refuse_zero_start


@register_attention("srm")
class StyleRecalibration(ChannelAttention):
    """v = gate(norm(w_mu mu + w_sigma sigma)), with w = 0 at the start and norm a BatchNorm over the samples.

    A learned psi has no batch: the static form keeps the affine part of norm, gamma z + beta. With w = 0 the first
    step moves w and beta only, and psi from the second step on.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
        gate: the last function.
        epsilon: added to the variance over positions.

    Source: Lee, Kim, Nam, *SRM: A Style-based Recalibration Module for Convolutional Neural Networks*, ICCV 2019.
    """

    squeezes = "mean, deviation -> (C, 2)"
    excites = "gate(norm(w_mu mu + w_sigma sigma)), w = 0 at the start"
    source = "Lee 2019, arXiv 1903.10829"

    def __init__(self, channels: int, *, axis: int = 1, gate: GateName = "sigmoid", epsilon: float = 1e-5) -> None:
        super().__init__(channels, axis=axis)
        self.gate = checked_gate("srm", gate)
        self.epsilon = checked_positive("srm", "epsilon", epsilon)
        self.weight = nn.Parameter(torch.zeros(channels, 2))
        self.norm = nn.BatchNorm1d(channels)

    @property
    def descriptor_shape(self) -> tuple[int, ...]:
        """(C, 2): mean and deviation."""
        return (self.channels, 2)

    def squeeze(self, x: Tensor) -> Tensor:
        """Mean and deviation of each channel: (N, C, ...) -> (N, C, 2)."""
        return torch.stack((mean_pool(x, self.axis), deviation_pool(x, self.axis, self.epsilon)), dim=-1)

    def excite(self, descriptor: Tensor) -> Tensor:
        """(*lead, C, 2) -> (*lead, C); while training, norm uses (and follows) the statistics over ``lead``."""
        style = self._style(descriptor)
        return GATES[self.gate](self._normalise(style.reshape(-1, self.channels)).reshape_as(style))

    def excite_static(self, psi: Tensor) -> Tensor:
        """(C, 2) -> (C,), with the affine part of norm only."""
        dtype = psi.dtype
        return GATES[self.gate](self._style(psi) * self.norm.weight.to(dtype) + self.norm.bias.to(dtype))

    def check_start(self, psi: Tensor) -> None:
        """Refuse a channel where psi, (C, 2), and w are both 0: the gradient of each is a multiple of the other.

        Raises:
            AttachError: where there is such a channel.
        """
        refuse_zero_start(self.name, ((psi == 0) & (self.weight == 0)).all(-1), "the weight w")

    def _style(self, descriptor: Tensor) -> Tensor:
        return (descriptor * self.weight.to(descriptor.dtype)).sum(-1)

    def _normalise(self, style: Tensor) -> Tensor:
        """(N, C) -> (N, C). The running statistics are followed in their own dtype and read in that of ``style``."""
        norm, mean, variance, dtype = self.norm, self.norm.running_mean, self.norm.running_var, style.dtype
        if self.training or mean is None or variance is None:
            normalised: Tensor = norm(style.to(norm.weight.dtype))
            return normalised.to(dtype)
        deviation = (variance.to(dtype) + norm.eps).sqrt()
        return (style - mean.to(dtype)) / deviation * norm.weight.to(dtype) + norm.bias.to(dtype)
