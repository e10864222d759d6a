"""Attentions over positions: one number for each place of a map, not for each channel.

Such a scale folds only where positions meet a linear map: a layer that mixes them, a mean over them, a linear layer on
the flattened map. Each of these stands for one resolution, the ``grid``.
"""

from __future__ import annotations

import math

from torch import Tensor

from stripefold.attention.base import ChannelAttention
from stripefold.errors import AttachError


class PositionAttention(ChannelAttention):
    """A scale s of the positions: y = s (.) x, in a dynamic form, and a static one on a grid of known size; abstract.

    ``squeeze`` gives (N, *descriptor), ``excite`` turns that into (N, *grid) or (N, C, *grid), and
    ``excite_static`` gives the scale of the grid's positions in row-major order, (P,) or (C, P).

    Args:
        channels: C of the map.
        axis: the channel axis of feature maps, 1 or -1.
        grid: sizes of the position axes, such as (H, W); needed by the static form, where ``attach`` finds it.

    Raises:
        AttachError: as for every attention, or a grid that is none.
    """

    acts = "positions"

    def __init__(self, channels: int, *, axis: int = 1, grid: tuple[int, ...] | None = None) -> None:
        super().__init__(channels, axis=axis)
        self._grid = None if grid is None else self._checked(grid)

    @property
    def grid(self) -> tuple[int, ...]:
        """The sizes of the position axes.

        Raises:
            AttachError: built without.
        """
        if self._grid is None:
            raise AttachError(f"attention {self.name!r}: a learned map needs its resolution, such as grid=(7, 7)")
        return self._grid

    @property
    def positions(self) -> int:
        """P, the number of positions."""
        return math.prod(self.grid)

    def excite_static(self, psi: Tensor) -> Tensor:
        """(*descriptor_shape) -> (P,), or (C, P) for an attention that gates each channel's positions apart."""
        return self.excite(psi).flatten(-len(self.grid))

    def extra_repr(self) -> str:
        """The width and the grid."""
        grid = "" if self._grid is None else f", grid={'x'.join(map(str, self._grid))}"
        return super().extra_repr() + grid

    def _checked(self, grid: object) -> tuple[int, ...]:
        sizes = tuple(grid) if isinstance(grid, (tuple, list)) else ()
        if not 1 <= len(sizes) <= 3 or not all(type(size) is int and size > 0 for size in sizes):
            raise AttachError(
                f"attention {type(self).name!r}: grid must be one to three positive sizes such as (7, 7), got {grid!r}"
            )
        return sizes
