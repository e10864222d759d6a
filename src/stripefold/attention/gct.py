"""Gated channel transformation: each channel's norm, relative to the others'."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripefold.attention.base import ChannelAttention
from stripefold.attention.gates import GATES, GateName, checked_gate
from stripefold.attention.layers import checked_positive
from stripefold.attention.pooling import positions
from stripefold.attention.registry import register_attention
from stripefold.attention.saddles import refuse_zero_start


@register_attention("gct")
class GatedChannelTransformation(ChannelAttention):
    """v = 1 + tanh(gamma s / rms(s) + beta) with s = alpha d, and d the l2 norm of each channel.

    rms(s) is sqrt(mean over channels of s^2 + epsilon). alpha starts at 1, gamma and beta at 0, so v starts at 1; the
    first step moves gamma and beta only, psi and alpha from the second step on.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
        gate: the last function.
        epsilon: added under both roots.

    Source: Yang et al., *Gated Channel Transformation for Visual Recognition*, CVPR 2020, equations 2 to 7.
    """

    squeezes = "l2 norm -> (C,)"
    excites = "1 + tanh(gamma alpha d / rms(alpha d) + beta), gamma = 0 at the start"
    source = "Yang 2020, arXiv 1909.11519"

    def __init__(
        self, channels: int, *, axis: int = 1, gate: GateName = "one_plus_tanh", epsilon: float = 1e-5
    ) -> None:
        super().__init__(channels, axis=axis)
        self.gate = checked_gate("gct", gate)
        self.epsilon = checked_positive("gct", "epsilon", epsilon)
        self.alpha = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def squeeze(self, x: Tensor) -> Tensor:
        """The norm of each channel, sqrt(sum of squares + epsilon): (N, C, ...) -> (N, C)."""
        return (positions(x, self.axis).square().sum(-1) + self.epsilon).sqrt()

    def excite(self, descriptor: Tensor) -> Tensor:
        """(*lead, C) -> (*lead, C)."""
        dtype = descriptor.dtype
        embedding = self.alpha.to(dtype) * descriptor
        rms = (embedding.square().mean(-1, keepdim=True) + self.epsilon).sqrt()
        return GATES[self.gate](self.gamma.to(dtype) * embedding / rms + self.beta.to(dtype))

    def check_start(self, psi: Tensor) -> None:
        """Refuse a channel where psi, (C,), and gamma are both 0: the gradient of each is a multiple of the other.

        Raises:
            AttachError: where there is such a channel.
        """
        refuse_zero_start(self.name, (psi == 0) & (self.gamma == 0), "the weight gamma")
