"""No attention at all: the scale itself is learned, the control that shows what an attention adds."""

from __future__ import annotations

from torch import Tensor

from stripefold.attention.base import ChannelAttention
from stripefold.attention.registry import register_attention
from stripefold.errors import AttachError


@register_attention("scale")
class Scale(ChannelAttention):
    """v = psi, without parameters; psi starts at 1.

    Args:
        channels: C.
        axis: the channel axis of feature maps, 1 or -1.
    """

    squeezes = "none"
    excites = "v = psi, starts at 1"
    source = "the control; LayerScale without its small start"
    dynamic = False
    default_psi = 1.0

    def squeeze(self, x: Tensor) -> Tensor:
        """Refuse: nothing is computed from the map.

        Raises:
            AttachError: always.
        """
        del x
        raise AttachError("attention 'scale' has no dynamic form: it reads nothing from the map. Use form='static'")

    def excite(self, descriptor: Tensor) -> Tensor:
        """Give the descriptor back: (*lead, C) -> (*lead, C)."""
        return descriptor
