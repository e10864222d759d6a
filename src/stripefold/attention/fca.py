"""Frequency channel attention: each group of channels is described by one DCT component."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stripefold.attention.gates import GATES, GateName, checked_gate
from stripefold.attention.layers import hidden_width
from stripefold.attention.perceptron import Perceptron, PerceptronAttention
from stripefold.attention.pooling import as_plane
from stripefold.attention.registry import register_attention
from stripefold.errors import AttachError

GRID_UNIT = 7
TOP_FREQUENCIES = (
    *((0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0)),
    *((5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3), (3, 5), (2, 2)),
)
"""(vertical, horizontal) frequencies on a grid of 7 x 7, the best alone first (the paper's top 16)"""


def dct_row(frequency: int, size: int) -> list[float]:
    """One row of the orthonormal DCT-II: a function of position, ``size`` numbers with norm 1.

    Example:
        >>> [round(value, 3) for value in dct_row(1, 4)]
        [0.653, 0.271, -0.271, -0.653]
    """
    norm = math.sqrt((1 if frequency == 0 else 2) / size)
    return [norm * math.cos(math.pi * frequency * (position + 0.5) / size) for position in range(size)]


@register_attention("fca")
class FrequencyChannelAttention(PerceptronAttention):
    """v = gate(W2 relu(W1 d + b1) + b2), with d one DCT component of each channel.

    The map is averaged onto a grid of cells, the channels are split into groups of equal size (as equal as can be),
    and channel c of C gets component c F // C of the F best ones. The mean is component 0 (times the grid's width).
    The reference code takes grids of 56, 28, 14 and 7 for its four stages, and no biases.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
        reduction: r; the hidden width is max(1, round(C / r)).
        bias: whether b1 and b2 exist.
        gate: the last function.
        frequencies: F, from 1 to 16.
        grid: cells in each direction, a multiple of 7; the frequencies grow with it.

    Raises:
        AttachError: where an option is outside its range.

    Source: Qin, Zhang, Wu, Li, *FcaNet: Frequency Channel Attention Networks*, ICCV 2021, equations 4, 5 and 10.
    """

    squeezes = "DCT components -> (C,)"
    excites = "gate(W2 relu(W1 d + b1) + b2)"
    source = "Qin 2021, arXiv 2012.11879"

    def __init__(
        self,
        channels: int,
        *,
        axis: int = 1,
        reduction: float = 16,
        bias: bool = True,
        gate: GateName = "sigmoid",
        frequencies: int = 16,
        grid: int = 7,
    ) -> None:
        super().__init__(channels, axis=axis)
        self.gate = checked_gate("fca", gate)
        most = len(TOP_FREQUENCIES)
        if isinstance(frequencies, bool) or frequencies not in range(1, most + 1):
            raise AttachError(f"attention 'fca': frequencies must be an integer from 1 to {most}, got {frequencies!r}")
        if not isinstance(grid, int) or grid < GRID_UNIT or grid % GRID_UNIT:
            raise AttachError(f"attention 'fca': grid must be a positive multiple of {GRID_UNIT}, got {grid!r}")
        self.frequencies = frequencies
        self.grid = grid
        self.mlp = Perceptron(channels, hidden_width("fca", channels, reduction), channels, bias=bias)

    def squeeze(self, x: Tensor) -> Tensor:
        """One DCT component of each channel: (N, C, ...) -> (N, C)."""
        cells = F.adaptive_avg_pool2d(as_plane(x, self.axis), self.grid)
        vertical, horizontal = self._basis()
        weight = (vertical.unsqueeze(-1) * horizontal.unsqueeze(-2)).to(cells)
        return (cells * weight).sum((-2, -1))

    def excite(self, descriptor: Tensor) -> Tensor:
        """(*lead, C) -> (*lead, C)."""
        return GATES[self.gate](self.mlp(descriptor))

    def _basis(self) -> tuple[Tensor, Tensor]:
        """Each channel's two rows, (C, grid) each, in float64 on the CPU.

        They are made anew each time, so that no gate carries a buffer that its static form never reads.
        """
        step = self.grid // GRID_UNIT
        rows = torch.tensor([dct_row(step * each, self.grid) for each in range(GRID_UNIT)], dtype=torch.float64)
        group = torch.arange(self.channels) * self.frequencies // self.channels
        chosen = torch.tensor(TOP_FREQUENCIES)[group]
        return rows[chosen[:, 0]], rows[chosen[:, 1]]
