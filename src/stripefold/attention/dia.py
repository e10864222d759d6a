"""Dense-and-implicit attention: one recurrent cell, shared along the depth of a stage."""

from __future__ import annotations

import torch
from torch import Tensor

from stripefold.attention.base import ChannelAttention
from stripefold.attention.layers import hidden_width
from stripefold.attention.perceptron import Perceptron
from stripefold.attention.pooling import mean_pool, scale_channels
from stripefold.attention.registry import register_attention

CellState = tuple[Tensor, Tensor]
"""(h, c), each of the shape of the scale"""


@register_attention("dia")
class DenseImplicitAttention(ChannelAttention):
    """An LSTM along the depth: each site's v is its output, and depends on the sites before.

    i, f, g, o = A(d) + B(h), A and B perceptrons C -> C / r -> 4 C;
    c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) sigmoid(c');  v = h'.

    One module object belongs to all sites of one width in a stage, in the order in which they run; the state starts
    at zero. :meth:`step` is one site, in either form; ``forward`` alone is a site with none before it.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
        reduction: r; the hidden width of A and B is max(1, round(C / r)).

    Source: Huang, Liang, Liang, Yang, *DIANet: Dense-and-Implicit Attention Network*, AAAI 2020, section 3.
    """

    squeezes = "mean -> (C,)"
    excites = "one LSTM along the depth of a stage"
    source = "Huang 2020, arXiv 1905.10671"
    chained = True

    def __init__(self, channels: int, *, axis: int = 1, reduction: float = 4) -> None:
        super().__init__(channels, axis=axis)
        hidden = hidden_width("dia", channels, reduction)
        self.from_descriptor = Perceptron(channels, hidden, 4 * channels)
        self.from_state = Perceptron(channels, hidden, 4 * channels)

    def squeeze(self, x: Tensor) -> Tensor:
        """The mean of each channel: (N, C, ...) -> (N, C)."""
        return mean_pool(x, self.axis)

    def initial_state(self, descriptor: Tensor) -> CellState:
        """Zeros for h and c, (*lead, C) each, as before the first site."""
        zero = torch.zeros_like(descriptor)
        return zero, zero

    def step(self, descriptor: Tensor, state: CellState | None = None) -> tuple[Tensor, CellState]:
        """One site of the chain.

        Args:
            descriptor: (*lead, C).
            state: what the site before returned; None at the first site.

        Returns:
            v, (*lead, C), and the state for the next site, in the dtype of ``descriptor``.
        """
        hidden, cell = self.initial_state(descriptor) if state is None else state
        gates: Tensor = self.from_descriptor(descriptor) + self.from_state(hidden)
        admit, keep, candidate, emit = gates.chunk(4, -1)
        cell = torch.sigmoid(keep) * cell + torch.sigmoid(admit) * torch.tanh(candidate)
        hidden = torch.sigmoid(emit) * torch.sigmoid(cell)
        return hidden, (hidden, cell)

    def excite(self, descriptor: Tensor) -> Tensor:
        """(*lead, C) -> (*lead, C) for a site with none before it."""
        return self.step(descriptor)[0]

    def excite_static(  # type: ignore[override]  # a chained attention hands the state on
        self, psi: Tensor, state: CellState | None = None
    ) -> tuple[Tensor, CellState]:
        """psi, (C,), and the state of the site before -> v, (C,), and the state for the next."""
        return self.step(psi, state)

    def forward_chained(self, x: Tensor, state: CellState | None = None) -> tuple[Tensor, CellState]:
        """The dynamic form at one site of a chain.

        Args:
            x: (N, C, ...) or (N, ..., C), by ``axis``.
            state: what the site before returned; None at the first site.

        Returns:
            The scaled map, of the shape of ``x``, and the state for the next site.
        """
        scale, following = self.step(self.squeeze(x), state)
        return scale_channels(x, scale, self.axis), following

    def reactivate_dead_units_(self, psi: Tensor) -> None:
        """Hidden units of A live at psi and of B at the zero state, see :meth:`Perceptron.reactivate_dead_units_`."""
        self.from_descriptor.reactivate_dead_units_(psi)
        self.from_state.reactivate_dead_units_(torch.zeros_like(psi))

    def dead_units(self, psi: Tensor) -> int:
        """How many hidden units of A psi does not reach, and of B the zero state."""
        return self.from_descriptor.dead_units(psi) + self.from_state.dead_units(torch.zeros_like(psi))
