"""Squeeze-and-excitation."""

from __future__ import annotations

from torch import Tensor

from stripefold.attention.gates import GATES, GateName, checked_gate
from stripefold.attention.layers import hidden_width
from stripefold.attention.perceptron import Perceptron, PerceptronAttention
from stripefold.attention.pooling import mean_pool
from stripefold.attention.registry import register_attention


@register_attention("se")
class SqueezeExcitation(PerceptronAttention):
    """v = gate(W2 relu(W1 d + b1) + b2) with d the mean of each channel.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
        reduction: r; the hidden width is max(1, round(C / r)).
        bias: whether b1 and b2 exist.
        gate: the last function.

    Source: Hu, Shen, Sun, *Squeeze-and-Excitation Networks*, CVPR 2018, equation 3.
    """

    squeezes = "mean -> (C,)"
    excites = "gate(W2 relu(W1 d + b1) + b2)"
    source = "Hu 2018, arXiv 1709.01507"

    def __init__(
        self,
        channels: int,
        *,
        axis: int = 1,
        reduction: float = 16,
        bias: bool = True,
        gate: GateName = "sigmoid",
    ) -> None:
        super().__init__(channels, axis=axis)
        self.gate = checked_gate("se", gate)
        self.mlp = Perceptron(channels, hidden_width("se", channels, reduction), channels, bias=bias)

    def squeeze(self, x: Tensor) -> Tensor:
        """The mean of each channel: (N, C, ...) -> (N, C)."""
        return mean_pool(x, self.axis)

    def excite(self, descriptor: Tensor) -> Tensor:
        """(*lead, C) -> (*lead, C)."""
        return GATES[self.gate](self.mlp(descriptor))
