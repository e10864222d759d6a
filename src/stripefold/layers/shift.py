"""What is added to a layer's output, a vector ``a`` over its channels, goes into the layer's bias.

v (.) B(x) + a is B with (v weight, v bias + a): where a rule scales a bias with the output, that bias takes ``a`` too.
A layer whose ``forward`` knows a bias and that was built without one gets one (and so a new key, unless a BatchNorm
right behind takes it, see ``biases``); a layer that knows none is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripefold.layers.rule import Along, Rule, own_tensor

_NAMES = ("bias", "beta")


def shift_key(rule: Rule) -> str | None:
    """The attribute that takes what is added to the output, or None where the rule names none."""
    return next((name for name in _NAMES if isinstance(rule.output.get(name), Along)), None)


def shift_refusal(layer: nn.Module, rule: Rule) -> str | None:
    """Why this layer cannot take what is added to its output, which its ``forward`` may have no bias for; or None."""
    key = shift_key(rule)
    if key is not None and (key in layer._parameters or key in layer._buffers):
        return None
    return f"{type(layer).__name__} has no place for a bias"


def shifted(rule: Rule, layer: nn.Module, a: Tensor, v: Tensor | None = None) -> dict[str, Tensor | None]:
    """The bias of ``v (.) B(x) + a``, in the layer's dtype, or in float64 where ``a`` is.

    The training form, with gradients; what folds is ``absorb``, and the probe holds one against the other.

    Args:
        rule: of the layer; it has a ``shift_key``.
        layer: the layer, with a bias or without.
        a: what is added, shape (C,).
        v: the scale of the output, shape (C,), or None.

    Returns:
        Attribute -> tensor.
    """
    key = shift_key(rule)
    assert key is not None  # shift_refusal has said so
    bias = own_tensor(layer, key)
    scaled = bias if bias is None or v is None else rule.output[key](layer, bias, v)
    total = a if scaled is None else scaled + a
    like = own_tensor(layer, rule.required) if bias is None else bias
    return {key: total if like is None or a.dtype == torch.float64 else total.to(like.dtype)}
