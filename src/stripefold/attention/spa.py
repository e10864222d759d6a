"""Spatial pyramid attention: means over a pyramid of cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stripefold.attention.gates import GATES, GateName, checked_gate
from stripefold.attention.layers import hidden_width
from stripefold.attention.perceptron import Perceptron, PerceptronAttention
from stripefold.attention.pooling import as_plane
from stripefold.attention.registry import register_attention

LEVELS = (1, 2, 4)
CELLS = sum(level * level for level in LEVELS)


@register_attention("spa")
class SpatialPyramidAttention(PerceptronAttention):
    """v = gate(W2 relu(W1 d)) with d the means of each channel over 1 x 1, 2 x 2 and 4 x 4 cells.

    The descriptor holds 21 C numbers: level after level, and within a level channel after channel.
    Maps that are not two-dimensional are seen as :func:`~stripefold.attention.pooling.as_plane` says.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
        reduction: r; the hidden width is max(1, round(C / r)).
        bias: whether the two layers have biases; the paper's have none.
        gate: the last function.

    Source: Guo, Ma et al., *Spatial Pyramid Attention Network for Enhanced Image Recognition*, ICME 2020.
    """

    squeezes = "means over 1, 2 x 2, 4 x 4 cells -> (21 C,)"
    excites = "gate(W2 relu(W1 d)), W1: 21 C -> C / r"
    source = "Guo 2020, doi 10.1109/ICME46284.2020.9102906"

    def __init__(
        self,
        channels: int,
        *,
        axis: int = 1,
        reduction: float = 16,
        bias: bool = False,
        gate: GateName = "sigmoid",
    ) -> None:
        super().__init__(channels, axis=axis)
        self.gate = checked_gate("spa", gate)
        self.mlp = Perceptron(CELLS * channels, hidden_width("spa", channels, reduction), channels, bias=bias)

    @property
    def descriptor_shape(self) -> tuple[int, ...]:
        """(21 C,)."""
        return (CELLS * self.channels,)

    def squeeze(self, x: Tensor) -> Tensor:
        """The pyramid of means: (N, C, ...) -> (N, 21 C)."""
        plane = as_plane(x, self.axis)
        return torch.cat([F.adaptive_avg_pool2d(plane, level).flatten(1) for level in LEVELS], dim=1)

    def excite(self, descriptor: Tensor) -> Tensor:
        """(*lead, 21 C) -> (*lead, C)."""
        return GATES[self.gate](self.mlp(descriptor))
