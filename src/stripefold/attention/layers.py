"""Layers whose arithmetic follows the input's dtype, and the two-layer perceptron with its ReLU looked after."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripefold.errors import AttachError


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer in the dtype of ``x``: (..., in) -> (..., out)."""
    weight = layer.weight.to(x.dtype)
    return F.linear(x, weight) if layer.bias is None else F.linear(x, weight, layer.bias.to(x.dtype))


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
    number = not isinstance(reduction, bool) and isinstance(reduction, (int, float))
    if not number or not math.isfinite(reduction) or reduction <= 0:
        raise AttachError(f"attention {owner!r}: reduction must be a positive finite number, got {reduction!r}")
    return max(1, round(channels / reduction))


class Perceptron(nn.Module):
    """W2 relu(W1 x + b1) + b2 with torch's own initialisation.

    Args:
        inputs: width of x.
        hidden: width after W1.
        outputs: width after W2.
        bias: whether b1 and b2 exist.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        self.reduce = nn.Linear(inputs, hidden, bias=bias)
        self.expand = nn.Linear(hidden, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), in the dtype of ``x``."""
        return linear(self.expand, F.relu(linear(self.reduce, x)))

    def dead(self, points: Tensor) -> Tensor:
        """Which hidden units none of the points reaches.

        Args:
            points: (inputs,), or (K, inputs): a unit that lives at one of the K points lives.

        Returns:
            (hidden,) of booleans.
        """
        with torch.no_grad():
            precise = torch.promote_types(points.dtype, torch.float32)
            before = linear(self.reduce, points.detach().reshape(-1, self.reduce.in_features).to(precise))
            return (before <= 0).all(0)

    def dead_units(self, points: Tensor) -> int:
        """The number of hidden units that none of the points reaches (0 on the meta device, which has no values)."""
        return 0 if points.is_meta else int(self.dead(points).sum())

    def revive_(self, points: Tensor) -> None:
        """Make at least max(1, hidden // 4) hidden units live, and change nothing where so many already do.

        By chance half of them live. Where too few do, the first dead units change the sign of their row of W1 and b1.
        The initial distribution is symmetric, so this is the same as drawing the unit again until it lives: each unit
        keeps its paper-like distribution, given that it lives, and no random number is used.

        Args:
            points: (inputs,) or (K, inputs), as for :meth:`dead`.
        """
        dead = self.dead(points)
        live_target = max(1, self.reduce.out_features // 4)
        missing = live_target - (~dead).sum()
        flip = dead & (dead.cumsum(0) <= missing)
        with torch.no_grad():
            sign = torch.where(flip, -1.0, 1.0)
            self.reduce.weight.mul_(sign.unsqueeze(1))
            if self.reduce.bias is not None:
                self.reduce.bias.mul_(sign)
