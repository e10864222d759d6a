"""A linear layer whose arithmetic follows the input's dtype, and how wide a reduced one is."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripefold.errors import AttachError


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer in the dtype of ``x``: (..., in) -> (..., out).

    A vector takes a matrix-vector product: for one psi that is half the time of ``F.linear``, which first makes a
    matrix
    of it (SE at 256 channels, forward and backward: 256 against 526 us). A proxy of ``torch.fx`` has no known rank.
    """
    weight: Tensor = layer.weight
    bias: Tensor | None = layer.bias
    if not isinstance(x, Tensor) or weight.dtype != x.dtype:
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if isinstance(x, Tensor) and x.dim() == 1:
        return torch.mv(weight, x) if bias is None else torch.addmv(bias, weight, x)
    return F.linear(x, weight, bias)


def hidden_width(owner: str, channels: int, reduction: float) -> int:
    """The width of a reduced layer, max(1, round(channels / reduction)): never zero.

    Args:
        owner: the attention that asks, for the message.
        channels: C.
        reduction: r, any positive finite number.

    Raises:
        AttachError: where ``reduction`` is no such number.

    Example:
        >>> [hidden_width("se", width, 16) for width in (7, 64, 2048)]
        [1, 4, 128]
    """
    return max(1, round(channels / checked_positive(owner, "reduction", reduction)))


def checked_positive(owner: str, option: str, value: float) -> float:
    """Return ``value`` if it is a positive finite number.

    Args:
        owner: the attention that asks, for the message.
        option: the option's name, for the message.
        value: what the user gave.

    Raises:
        AttachError: for anything else.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise AttachError(f"attention {owner!r}: {option} must be a positive finite number, got {value!r}")
    return value
