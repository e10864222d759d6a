"""Gates: the trainable part at a site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.asr.chain import StateChain
from stripefold.attention.base import ChannelAttention


class StaticGate(nn.Module):
    """``v = E_theta(psi)``: a scale that does not depend on the input, or what is added (``adds``).

    Args:
        attention: gives ``excite_static``; its parameters are theta.
        psi: the learnable descriptor, shape ``attention.descriptor_shape``.
        previous: the gate before this one, for a chained attention (DIA).
        options: what the attention was built with, for adapter files.
    """

    start: Tensor | None
    adds: bool = False
    """whether v is added to the channels, not multiplied onto them; plain, since it is read at every step"""

    def __init__(
        self,
        attention: ChannelAttention,
        psi: Tensor,
        *,
        previous: StaticGate | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.options = dict(options or {})
        self.psi = nn.Parameter(psi)
        self.attention = attention
        self.adds = attention.how == "add"
        self.register_buffer("start", None)
        # In a tuple, so that it is a reference and not a submodule: the chain runs through the model, not down it.
        self._previous = (previous,) if previous is not None else ()
        self._born: Tensor | None = None

    @property
    def position(self) -> int:
        """How many gates stand before this one in its chain; 0 without one."""
        count, before = 0, self._previous
        while before:
            count, before = count + 1, before[0]._previous
        return count

    def forward(self, dtype: torch.dtype | None = None) -> Tensor:
        """The scale v, shape (C,) or (P,) over positions, computed in at least float32 with autocast off.

        Args:
            dtype: compute in this dtype; None takes psi's own, float32 at the least.
        """
        parameter = self._parameters["psi"]  # not self.psi, which torch.fx replaces by a proxy
        assert parameter is not None
        dtype = dtype or torch.promote_types(parameter.dtype, torch.float32)
        device = parameter.device.type
        # The meta device has no autocast to ask about.
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        if autocast:
            with torch.autocast(device, enabled=False):
                v = self._excite(dtype)[0]
        else:
            v = self._excite(dtype)[0]
        if self.start is None:
            return v
        start = self.start.to(dtype)
        return v - start if self.adds else v / start

    def _excite(self, dtype: torch.dtype) -> tuple[Tensor, Any]:
        """The scale before the division by its start, and the chain's state."""
        parameter = self._parameters["psi"]
        psi = self.psi if parameter is not None and parameter.dtype == dtype else self.psi.to(dtype)
        if not self.attention.chained:
            return self.attention.excite_static(psi), None
        state = self._previous[0]._excite(dtype)[1] if self._previous else None
        return self.attention.excite_static(psi, state)  # type: ignore[call-arg, return-value]

    def normalize_to_identity_(self) -> Tensor:
        """Make the present scale count as 1, the present shift as 0 (``init="identity"``); returns it, shape (C,)."""
        with torch.no_grad():
            start = self.forward().detach().clone()  # the attention "scale" gives psi itself
        self.start = start
        return start

    def record_initial_scale_(self) -> None:
        """Note the present scale: ``is_at_start`` compares with it. Neither a buffer nor part of any file."""
        if not self.psi.is_meta:
            with torch.no_grad():
                self._born = self.forward().float().cpu().clone()  # "scale" gives psi itself, which will move

    def is_at_start(self) -> bool:
        """Whether the scale, shape (C,), is still what it was when the gate was built, although it may train."""
        if self._born is None or not any(p.requires_grad for p in self.parameters()):
            return False
        with torch.no_grad():
            return torch.allclose(self.forward().float().cpu(), self._born, rtol=1e-6, atol=0)

    def _apply(self, fn: Any, recurse: bool = True) -> StaticGate:
        """Moves and casts as every module does, but the identity reference never drops below float32."""
        start = self.start
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if start is not None and self.start is not None and self.start.dtype.itemsize < 4:
            self.start = start.to(self.start.device)
        return self


class DynamicGate(nn.Module):
    """The ordinary, input-dependent attention on a site's output (the "+ SE" of the paper's tables).

    Args:
        attention: called on the output; one module for all sites of a chain.
        options: what the attention was built with, for adapter files.
        chain: for a chained attention (DIA): hands its state on to the next site within one forward.
        position: of this gate in the chain, from 0.
    """

    chain: StateChain | None = None
    position: int = 0

    def __init__(
        self,
        attention: ChannelAttention,
        *,
        options: Mapping[str, Any] | None = None,
        chain: StateChain | None = None,
        position: int = 0,
    ) -> None:
        super().__init__()
        self.options = dict(options or {})
        self.attention = attention
        self.chain, self.position = chain, position

    def forward(self, activation: Tensor) -> Tensor:
        """Scale a feature map (N, C, ...) or (N, ..., C) by its own attention.

        Raises:
            ChainError: the site before in the chain has not run just before.
        """
        if self.chain is None:
            result: Tensor = self.attention(activation)
            return result
        state = self.chain.take(self.position, activation)
        result, state = self.attention.forward_chained(activation, state)  # type: ignore[operator]
        self.chain.leave(self.position, activation, state)
        return result
