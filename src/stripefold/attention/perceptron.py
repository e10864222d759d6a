"""The two-layer perceptron of most attentions, with its ReLU looked after, and the attentions' part that uses it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripefold.attention.base import ChannelAttention
from stripefold.attention.layers import linear
from stripefold.attention.saddles import refuse_zero_start


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
        self.biased = bias
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

    def reactivate_dead_units_(self, points: Tensor) -> None:
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
            if self.biased:
                self.reduce.bias.mul_(sign)


class PerceptronAttention(ChannelAttention):
    """An attention whose hidden units psi has to reach; abstract.

    Subclasses set ``self.mlp`` and, where psi is not itself what ``mlp`` is given, override :meth:`hidden_inputs`.
    """

    mlp: Perceptron

    def hidden_inputs(self, psi: Tensor) -> Tensor:
        """The vectors that reach the first layer when the descriptor is psi: (inputs,) or (K, inputs)."""
        return psi

    def check_start(self, psi: Tensor) -> None:
        """Refuse psi = 0 where W1 has no bias: every hidden unit is then 0, and its gradient too.

        Raises:
            AttachError: at such a start.
        """
        if not self.mlp.biased:
            stuck = (psi == 0).all()
            refuse_zero_start(self.name, stuck, "without biases the first layer")

    def reactivate_dead_units_(self, psi: Tensor) -> None:
        """Make at least max(1, hidden // 4) hidden units live at psi, see :meth:`Perceptron.reactivate_dead_units_`."""
        self.mlp.reactivate_dead_units_(self.hidden_inputs(psi))

    def dead_units(self, psi: Tensor) -> int:
        """How many hidden units psi does not reach."""
        return self.mlp.dead_units(self.hidden_inputs(psi))
