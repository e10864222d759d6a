"""No attention at all: what is added is itself learned, the control that shows what an additive attention adds."""

from __future__ import annotations

from torch import Tensor

from stripefold.attention.base import ChannelAttention
from stripefold.attention.registry import register_attention
from stripefold.errors import AttachError


@register_attention("shift")
class Shift(ChannelAttention):
    """a = psi, without parameters; psi starts at 0.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
    """

    squeezes = "none"
    excites = "a = psi, starts at 0"
    source = "the control of what is added; a second bias"
    how = "add"
    dynamic = False
    default_psi = 0.0

    def squeeze(self, x: Tensor) -> Tensor:
        """Refuse: nothing is computed from the map.

        Raises:
            AttachError: always.
        """
        del x
        raise AttachError("attention 'shift' has no dynamic form: it reads nothing from the map. Use form='static'")

    def excite(self, descriptor: Tensor) -> Tensor:
        """Give the descriptor back: (*lead, C) -> (*lead, C)."""
        return descriptor
