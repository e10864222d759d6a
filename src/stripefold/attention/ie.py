"""Instance enhancement: one weight and one bias for each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripefold.attention.base import ChannelAttention
from stripefold.attention.gates import GATES, GateName, checked_gate
from stripefold.attention.pooling import mean_pool
from stripefold.attention.registry import register_attention
from stripefold.attention.saddles import refuse_zero_start


@register_attention("ie")
class InstanceEnhancement(ChannelAttention):
    """v = gate(g d + b) with d the mean of each channel; g starts at 0 and b at -1.

    With g = 0 the first step moves g and b only, and psi from the second step on.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
        gate: the last function.

    Source: Liang, Huang, Liang, Yang, *Instance Enhancement Batch Normalization*, AAAI 2020.
    """

    squeezes = "mean -> (C,)"
    excites = "gate(g d + b), g = 0 and b = -1 at the start"
    source = "Liang 2020, arXiv 1908.04008"

    def __init__(self, channels: int, *, axis: int = 1, gate: GateName = "sigmoid") -> None:
        super().__init__(channels, axis=axis)
        self.gate = checked_gate("ie", gate)
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.full((channels,), -1.0))

    def squeeze(self, x: Tensor) -> Tensor:
        """The mean of each channel: (N, C, ...) -> (N, C)."""
        return mean_pool(x, self.axis)

    def excite(self, descriptor: Tensor) -> Tensor:
        """(*lead, C) -> (*lead, C)."""
        dtype = descriptor.dtype
        return GATES[self.gate](self.weight.to(dtype) * descriptor + self.bias.to(dtype))

    def check_start(self, psi: Tensor) -> None:
        """Refuse a channel where psi, (C,), and g are both 0: the gradient of each is a multiple of the other.

        Raises:
            AttachError: where there is such a channel.
        """
        refuse_zero_start(self.name, (psi == 0) & (self.weight == 0), "the weight g")
