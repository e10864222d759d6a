"""Gather-excite: the gathered context gates each channel, with more or fewer parameters."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from stripefold.attention.base import ChannelAttention
from stripefold.attention.gates import GATES, GateName, checked_gate
from stripefold.attention.layers import hidden_width
from stripefold.attention.perceptron import Perceptron
from stripefold.attention.pooling import mean_pool
from stripefold.attention.registry import register_attention
from stripefold.errors import AttachError

Variant = Literal["theta-", "theta", "theta+"]


@register_attention("ge")
class GatherExcite(ChannelAttention):
    """Gather over the whole map (global extent), then excite, in the paper's three variants.

    - ``theta-``: v = gate(d), d the mean of each channel; no parameters.
    - ``theta``: v = gate(w d + b): the depthwise gathering with its normalisation, for a kernel that weighs all
      positions alike, so that it depends on no resolution.
    - ``theta+``: v = gate(W2 relu(W1 (w d + b) + b1) + b2), the gathering of ``theta`` under an SE-like perceptron.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
        variant: one of the three.
        reduction: r of ``theta+``; the hidden width is max(1, round(C / r)).
        gate: the last function.

    Raises:
        AttachError: for another variant.

    Source: Hu, Shen, Albanie, Sun, Vedaldi, *Gather-Excite: Exploiting Feature Context in Convolutional Neural
    Networks*, NeurIPS 2018, sections 3.1 to 3.3.
    """

    squeezes = "mean -> (C,)"
    excites = "gate(d), gate(w d + b), or gate(W2 relu(W1 (w d + b) + b1) + b2)"
    source = "Hu 2018b, arXiv 1810.12348"

    def __init__(
        self,
        channels: int,
        *,
        axis: int = 1,
        variant: Variant = "theta-",
        reduction: float = 16,
        gate: GateName = "sigmoid",
    ) -> None:
        super().__init__(channels, axis=axis)
        self.gate = checked_gate("ge", gate)
        if variant not in get_args(Variant):
            raise AttachError(f"attention 'ge': variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")
        hidden = hidden_width("ge", channels, reduction)
        self.variant = variant
        self.weight = nn.Parameter(torch.ones(channels)) if variant != "theta-" else None
        self.bias = nn.Parameter(torch.zeros(channels)) if variant != "theta-" else None
        self.mlp = Perceptron(channels, hidden, channels) if variant == "theta+" else None

    def squeeze(self, x: Tensor) -> Tensor:
        """The mean of each channel: (N, C, ...) -> (N, C)."""
        return mean_pool(x, self.axis)

    def excite(self, descriptor: Tensor) -> Tensor:
        """(*lead, C) -> (*lead, C)."""
        gathered = self._gather(descriptor)
        return GATES[self.gate](gathered if self.mlp is None else self.mlp(gathered))

    def reactivate_dead_units_(self, psi: Tensor) -> None:
        """In ``theta+``: hidden units that are live at psi, see :meth:`Perceptron.reactivate_dead_units_`."""
        if self.mlp is not None:
            self.mlp.reactivate_dead_units_(self._gather(psi))

    def dead_units(self, psi: Tensor) -> int:
        """How many hidden units psi does not reach (0 but in ``theta+``)."""
        return 0 if self.mlp is None else self.mlp.dead_units(self._gather(psi))

    def _gather(self, descriptor: Tensor) -> Tensor:
        if self.weight is None or self.bias is None:
            return descriptor
        return descriptor * self.weight.to(descriptor.dtype) + self.bias.to(descriptor.dtype)
