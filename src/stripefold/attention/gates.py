"""The final activation of an excitation, which turns an unbounded number into a scale: the option ``gate=``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stripefold.errors import AttachError

GateName = Literal["sigmoid", "hard_sigmoid", "tanh", "one_plus_tanh", "identity"]


def one_plus_tanh(x: Tensor) -> Tensor:
    """1 + tanh(x): a scale in (0, 2) that is 1 at 0."""
    return 1 + torch.tanh(x)


def identity(x: Tensor) -> Tensor:
    """Give x back: an unbounded scale."""
    return x


# A plain dictionary: the compilers of older torch versions cannot look into a read-only one.
GATES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "one_plus_tanh": one_plus_tanh,
    "identity": identity,
}
"""name -> function; the hard sigmoid is min(max(x + 3, 0), 6) / 6"""


def checked_gate(owner: str, gate: str) -> str:
    """Return ``gate`` if there is one of that name.

    Args:
        owner: the attention that asks, for the message.
        gate: a key of :data:`GATES`.

    Raises:
        AttachError: for any other name, with the known ones and the closest.
    """
    if isinstance(gate, str) and gate in GATES:
        return gate
    close = difflib.get_close_matches(str(gate), GATES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise AttachError(f"attention {owner!r}: no gate {gate!r}; known are {', '.join(GATES)}{hint}")
