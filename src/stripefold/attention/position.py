"""No attention at all: the scale of each position is itself learned, the control that shows what ``spatial`` adds."""

from __future__ import annotations

from torch import Tensor

from stripefold.attention.positional import PositionAttention
from stripefold.attention.registry import register_attention
from stripefold.errors import AttachError


@register_attention("position")
class Position(PositionAttention):
    """s = psi, without parameters; psi starts at 1.

    Args:
        channels: C of the map.
        axis: the channel axis of feature maps, 1 or -1.
        grid: sizes of the position axes; ``attach`` finds them.
        per_channel: one number for each position of each channel, not for each position.
    """

    squeezes = "none"
    excites = "s = psi, starts at 1"
    source = "the control of spatial"
    dynamic = False
    default_psi = 1.0

    def __init__(
        self, channels: int, *, axis: int = 1, grid: tuple[int, ...] | None = None, per_channel: bool = False
    ) -> None:
        super().__init__(channels, axis=axis, grid=grid)
        self.per_channel = per_channel

    @property
    def descriptor_shape(self) -> tuple[int, ...]:
        """The grid, behind C where each channel has its own."""
        return (self.channels, *self.grid) if self.per_channel else self.grid

    def squeeze(self, x: Tensor) -> Tensor:
        """Refuse: nothing is computed from the map.

        Raises:
            AttachError: always.
        """
        del x
        raise AttachError("attention 'position' has no dynamic form: it reads nothing from the map. Use form='static'")

    def excite(self, descriptor: Tensor) -> Tensor:
        """Give the descriptor back."""
        return descriptor
