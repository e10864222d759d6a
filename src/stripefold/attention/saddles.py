"""Refuses an initialization at a saddle point, which no gradient leaves."""

from __future__ import annotations

from torch import Tensor

from stripefold.errors import AttachError


def refuse_zero_start(owner: str, stuck: Tensor, partner: str) -> None:
    """Refuse a start where psi and what multiplies it are both 0, so that neither gets a gradient, ever.

    Args:
        owner: the attention, for the message.
        stuck: booleans, true where both are 0. On the meta device there are no values, and nothing is refused.
        partner: what psi is multiplied by, in words.

    Raises:
        AttachError: where any element is stuck.
    """
    if not stuck.is_meta and bool(stuck.any()):
        raise AttachError(
            f"attention {owner!r} cannot start at psi = 0: {partner} gets a gradient only where psi is not 0, "
            f"and psi only through it, so this is a saddle that training never leaves. Start with psi=0.1"
        )
