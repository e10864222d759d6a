"""Efficient channel attention: a short convolution along the channels."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from stripefold.attention.base import ChannelAttention
from stripefold.attention.gates import GATES, GateName, checked_gate
from stripefold.attention.pooling import mean_pool
from stripefold.attention.registry import register_attention
from stripefold.errors import AttachError


def kernel_size_of(channels: int) -> int:
    """The nearest odd number that the paper gives to C channels: t = int(|log2(C) + 1| / 2), or t + 1 if t is even.

    Example:
        >>> [kernel_size_of(channels) for channels in (1, 16, 64, 256, 2048)]
        [1, 3, 3, 5, 7]
    """
    truncated = int(abs((math.log2(channels) + 1) / 2))
    return truncated if truncated % 2 else truncated + 1


@register_attention("eca")
class EfficientChannelAttention(ChannelAttention):
    """v = gate(conv1d_k(d)) with d the mean of each channel, zero-padded at both ends of the channels.

    A uniform psi gives the same v to all channels but the outer ones at the start, and the same gradient of the
    kernel to each; what makes the channels differ is then the gradient of psi alone.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
        kernel_size: k, odd; None takes it from C, see :func:`kernel_size_of`.
        gate: the last function.

    Raises:
        AttachError: where ``kernel_size`` is no positive odd integer.

    Source: Wang et al., *ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks*, CVPR 2020,
    equations 8 to 12.
    """

    squeezes = "mean -> (C,)"
    excites = "gate(conv1d_k(d)), k from C"
    source = "Wang 2020, arXiv 1910.03151"

    def __init__(
        self, channels: int, *, axis: int = 1, kernel_size: int | None = None, gate: GateName = "sigmoid"
    ) -> None:
        super().__init__(channels, axis=axis)
        self.gate = checked_gate("eca", gate)
        size = kernel_size_of(channels) if kernel_size is None else kernel_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % 2 == 0:
            raise AttachError(f"attention 'eca': kernel_size must be a positive odd integer or None, got {size!r}")
        self.kernel_size = size
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def squeeze(self, x: Tensor) -> Tensor:
        """The mean of each channel: (N, C, ...) -> (N, C)."""
        return mean_pool(x, self.axis)

    def excite(self, descriptor: Tensor) -> Tensor:
        """(*lead, C) -> (*lead, C)."""
        rows = descriptor.reshape(-1, 1, self.channels)
        mixed = F.conv1d(rows, self.conv.weight.to(descriptor.dtype), padding=self.kernel_size // 2)
        return GATES[self.gate](mixed.reshape_as(descriptor))
