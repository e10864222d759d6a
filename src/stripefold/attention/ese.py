"""Effective squeeze-and-excitation: one layer, no reduction."""

from __future__ import annotations

from torch import Tensor, nn

from stripefold.attention.base import ChannelAttention
from stripefold.attention.gates import GATES, GateName, checked_gate
from stripefold.attention.layers import linear
from stripefold.attention.pooling import mean_pool
from stripefold.attention.registry import register_attention


@register_attention("ese")
class EffectiveSqueezeExcitation(ChannelAttention):
    """v = gate(W d + b) with d the mean of each channel and a hard sigmoid as the gate.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
        gate: the last function.

    Source: Lee, Park, *CenterMask: Real-Time Anchor-Free Instance Segmentation*, CVPR 2020 (VoVNetV2), equation 4.
    """

    squeezes = "mean -> (C,)"
    excites = "gate(W d + b), a hard sigmoid"
    source = "Lee 2020, arXiv 1911.06667"

    def __init__(self, channels: int, *, axis: int = 1, gate: GateName = "hard_sigmoid") -> None:
        super().__init__(channels, axis=axis)
        self.gate = checked_gate("ese", gate)
        self.mix = nn.Linear(channels, channels)

    def squeeze(self, x: Tensor) -> Tensor:
        """The mean of each channel: (N, C, ...) -> (N, C)."""
        return mean_pool(x, self.axis)

    def excite(self, descriptor: Tensor) -> Tensor:
        """(*lead, C) -> (*lead, C)."""
        return GATES[self.gate](linear(self.mix, descriptor))
