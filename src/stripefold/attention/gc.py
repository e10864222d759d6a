"""Global context: what the whole map says is added to every position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripefold.attention.base import ChannelAttention
from stripefold.attention.layers import hidden_width, linear
from stripefold.attention.pooling import positions
from stripefold.attention.registry import register_attention
from stripefold.errors import AttachError

NARROWEST = 4
"""The smallest hidden width: a LayerNorm of one number is constant, of two it is their sign"""


@register_attention("gc")
class GlobalContext(ChannelAttention):
    """y = x + a with a = W2 relu(norm(W1 d + b1)) + b2 and d a weighted mean, sum_p softmax_p(w x_p + b) x_p.

    It adds, so that a static one folds into the bias of its layer. W2 and b2 are 0 at the start, as in the authors'
    code: the network computes what it did without.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
        reduction: r; the hidden width is max(4, round(C / r)).

    Source: Cao, Xu, Lin, Wei, Hu, *GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond*, ICCV
    workshops 2019, equation 6.
    """

    squeezes = "weighted mean, its weights a softmax over positions -> (C,)"
    excites = "a = W2 relu(norm(W1 d + b1)) + b2, W2 = 0 at the start"
    source = "Cao 2019, arXiv 1904.11492"
    how = "add"

    def __init__(self, channels: int, *, axis: int = 1, reduction: float = 16) -> None:
        super().__init__(channels, axis=axis)
        hidden = max(NARROWEST, hidden_width("gc", channels, reduction))
        self.context: nn.Linear | None = nn.Linear(channels, 1)
        self.reduce = nn.Linear(channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.expand = nn.Linear(hidden, channels)
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def squeeze(self, x: Tensor) -> Tensor:
        """The weighted mean of each channel: (N, C, ...) -> (N, C).

        Raises:
            AttachError: in a static gate, which has given up the weights.
        """
        if self.context is None:
            raise AttachError(
                "attention 'gc': a static gate reads no map. Attach with form='dynamic' for one that does"
            )
        flat = positions(x, self.axis)
        weights = torch.softmax(linear(self.context, flat.transpose(1, 2)), dim=1)
        return (flat @ weights).squeeze(-1)

    def excite(self, descriptor: Tensor) -> Tensor:
        """(*lead, C) -> (*lead, C)."""
        dtype = descriptor.dtype
        weight, bias = self.norm.weight.to(dtype), self.norm.bias.to(dtype)
        hidden = F.layer_norm(linear(self.reduce, descriptor), self.norm.normalized_shape, weight, bias, self.norm.eps)
        return linear(self.expand, F.relu(hidden))

    def drop_squeeze_parameters_(self) -> None:
        """Let go of w and b."""
        self.context = None
