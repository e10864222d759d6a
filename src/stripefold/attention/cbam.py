"""Convolutional block attention: mean and maximum through one shared perceptron, and a spatial half on demand."""

from __future__ import annotations

import torch
from torch import Tensor

from stripefold.attention.gates import GATES, GateName, checked_gate
from stripefold.attention.layers import hidden_width
from stripefold.attention.perceptron import Perceptron, PerceptronAttention
from stripefold.attention.pooling import max_pool, mean_pool
from stripefold.attention.registry import register_attention
from stripefold.attention.spatial import SpatialHalf
from stripefold.errors import AttachError


@register_attention("cbam")
class ConvolutionalBlockAttention(PerceptronAttention):
    """v = gate(MLP(mean) + MLP(max)), MLP(d) = W2 relu(W1 d + b1) + b2: the channel half.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
        reduction: r; the hidden width is max(1, round(C / r)).
        bias: whether the two layers have biases.
        gate: the last function of the channel half.
        spatial: adds the spatial half to the dynamic form.

    Source: Woo et al., *CBAM: Convolutional Block Attention Module*, ECCV 2018, equations 2 and 3.
    """

    squeezes = "mean, max -> (C, 2)"
    excites = "gate(MLP(mean) + MLP(max))"
    source = "Woo 2018, arXiv 1807.06521"

    def __init__(
        self,
        channels: int,
        *,
        axis: int = 1,
        reduction: float = 16,
        bias: bool = True,
        gate: GateName = "sigmoid",
        spatial: bool = False,
    ) -> None:
        super().__init__(channels, axis=axis)
        self.gate = checked_gate("cbam", gate)
        self.mlp = Perceptron(channels, hidden_width("cbam", channels, reduction), channels, bias=bias)
        self.spatial = SpatialHalf(axis) if spatial else None

    @property
    def descriptor_shape(self) -> tuple[int, ...]:
        """(C, 2): mean and maximum."""
        return (self.channels, 2)

    def squeeze(self, x: Tensor) -> Tensor:
        """Mean and maximum of each channel: (N, C, ...) -> (N, C, 2)."""
        return torch.stack((mean_pool(x, self.axis), max_pool(x, self.axis)), dim=-1)

    def excite(self, descriptor: Tensor) -> Tensor:
        """(*lead, C, 2) -> (*lead, C)."""
        return GATES[self.gate](self.mlp(descriptor[..., 0]) + self.mlp(descriptor[..., 1]))

    def forward(self, x: Tensor) -> Tensor:
        """The channel half, then the spatial half where there is one; the shape of ``x`` stays."""
        scaled = super().forward(x)
        return scaled if self.spatial is None else self.spatial(scaled)

    def check_start(self, psi: Tensor) -> None:
        """Refuse a spatial half, which no static form has, and psi = 0 without biases.

        Raises:
            AttachError: for either.
        """
        if self.spatial is not None:
            raise AttachError(
                "attention 'cbam': spatial=True has no static form, because a weight for each position of each image "
                "does not fold. Leave it out, or attach with form='dynamic'; the attention 'spatial' learns weights "
                "for all images alike, where those fold"
            )
        super().check_start(psi)

    def hidden_inputs(self, psi: Tensor) -> Tensor:
        """(C, 2) -> (2, C): mean and maximum meet the same hidden units."""
        return psi.transpose(0, 1)
