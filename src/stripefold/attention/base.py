"""The one interface of the zoo: a channel attention is ``squeeze`` then ``excite``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from stripefold.attention.pooling import scale_channels, shift_channels
from stripefold.errors import AttachError

Acts = Literal["channels", "positions"]
GateOperation = Literal["multiply", "add"]


class ChannelAttention(nn.Module, ABC):
    """A channel attention y = v (.) x with v = excite(squeeze(x)), in a dynamic and a static form.

    An additive one (``how = "add"``) is y = x + a with a = excite(squeeze(x)); one over positions
    (:class:`~stripefold.attention.positional.PositionAttention`) gives a number for each position.

    *Dynamic*: the module is called on feature maps, ``attention(x)``; x is (N, C), (N, C, L), (N, C, H, W) ...
    with ``axis=1``, or (N, ..., C) with ``axis=-1``.
    *Static*: ``excite_static(psi)`` gives v, shape (C,), from a learned descriptor ``psi``; nothing is pooled.

    All of ``excite`` and ``excite_static`` is computed in the dtype of its input (parameters are cast), and
    ``excite_static`` branches on nothing but the module's own options, so it can be traced, compiled and exported.

    Subclasses are final: they set ``name`` (by :func:`register_attention`) and write ``squeeze`` and ``excite``.

    Args:
        channels: C, the number of channels that are scaled.
        axis: the channel axis of the feature maps, 1 or -1.

    Raises:
        AttachError: for a width that is no positive integer, or another axis.
    """

    name: ClassVar[str] = ""
    """the registered name"""
    squeezes: ClassVar[str] = ""
    """what ``squeeze`` takes from a map, for the table of the zoo"""
    excites: ClassVar[str] = ""
    """what ``excite`` computes, for the table of the zoo"""
    source: ClassVar[str] = ""
    """the paper that defines it"""
    chained: ClassVar[bool] = False
    """whether v depends on the site before (then ``excite_static(psi, state) -> (v, state)``, and in the dynamic form
    ``forward_chained(x, state) -> (y, state)``)"""
    dynamic: ClassVar[bool] = True
    """whether there is a dynamic form"""
    acts: ClassVar[Acts] = "channels"
    """what the numbers it gives belong to"""
    how: ClassVar[GateOperation] = "multiply"
    """what is done with them"""
    default_psi: ClassVar[float] = 0.1
    """the starting value of psi where none is asked for"""

    channels: int
    axis: int

    def __init__(self, channels: int, *, axis: int = 1) -> None:
        super().__init__()
        label = type(self).name or type(self).__name__
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise AttachError(f"attention {label!r}: channels must be an integer of at least 1, got {channels!r}")
        if isinstance(axis, bool) or axis not in (1, -1):
            raise AttachError(f"attention {label!r}: axis must be 1 (N, C, ...) or -1 (N, ..., C), got {axis!r}")
        self.channels = channels
        self.axis = axis

    @property
    def descriptor_shape(self) -> tuple[int, ...]:
        """The shape of ``squeeze(x)`` for one sample, which is the shape of psi."""
        return (self.channels,)

    @abstractmethod
    def squeeze(self, x: Tensor) -> Tensor:
        """Describe each sample of a feature map.

        Args:
            x: (N, C, ...) or (N, ..., C), by ``axis``.

        Returns:
            The descriptor, (N, *descriptor_shape).
        """

    @abstractmethod
    def excite(self, descriptor: Tensor) -> Tensor:
        """Turn descriptors into scales; a normalisation inside uses the batch.

        Args:
            descriptor: (*lead, *descriptor_shape).

        Returns:
            v, (*lead, C), in the dtype of ``descriptor``.
        """

    def excite_static(self, psi: Tensor) -> Tensor:
        """Turn one learned descriptor into the scale; a normalisation inside keeps its affine part only.

        Args:
            psi: (*descriptor_shape).

        Returns:
            v, (C,), in the dtype of ``psi``.
        """
        return self.excite(psi)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of each sample by its own v, or add its own a; the shape of ``x`` stays."""
        apply = shift_channels if self.how == "add" else scale_channels
        return apply(x, self.excite(self.squeeze(x)), self.axis)

    def drop_squeeze_parameters_(self) -> None:
        """Let go of parameters that only ``squeeze`` uses: a static gate would carry them without ever using them."""

    def check_start(self, psi: Tensor) -> None:
        """Refuse a start that no gradient leaves.

        Args:
            psi: (*descriptor_shape), as the gate would start with.

        Raises:
            AttachError: where psi and the parameters are at a saddle, with the reason.
        """

    def reactivate_dead_units_(self, psi: Tensor) -> None:
        """Make enough hidden ReLU units live at this psi; parameters of an attention without ReLU stay.

        A constant input meets the same ReLU at every step, so a unit that is dead at the start stays dead.

        Args:
            psi: (*descriptor_shape), as the gate starts with.
        """

    def dead_units(self, psi: Tensor) -> int:
        """Count the hidden ReLU units that psi does not reach (0 where there is no ReLU)."""
        del psi
        return 0

    def extra_repr(self) -> str:
        """The width, and the axis where it is not the usual one."""
        return f"{self.channels}" if self.axis == 1 else f"{self.channels}, axis={self.axis}"
