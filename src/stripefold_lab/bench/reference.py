"""The reference formulation of ASR: the gate multiplies the activation map, and what is deployed keeps BatchNorm.

y = E_theta(psi) (.) B(x), formed as it is written (the paper's equation; its reference code does the same). stripefold
scales B's parameters instead. Both give the same values and gradients; this one is what ours is measured against.

Source: Huang et al., "ASR: Attention-alike Structural Re-parameterization", arXiv 2304.06345.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.attention.registry import build_attention
from stripefold.errors import AttachError
from stripefold.layers.rule import rule_for
from stripefold.modules.foldable import Foldable


class FusedLayer(nn.Module):
    """What the reference code deploys at a site: a module around the layer that took up the gate.

    Args:
        fused_bn: The layer with the merged scale, under the name that the reference code gives it.
    """

    def __init__(self, fused_bn: nn.Module) -> None:
        super().__init__()
        self.fused_bn = fused_bn

    def forward(self, x: Tensor) -> Tensor:
        """Map x to B'(x)."""
        return self.fused_bn(x)


class ProductOnMap(nn.Module):
    """A layer whose output map is multiplied by a static gate.

    Args:
        base: The affine layer B.
        attention: Name of the channel attention E.
        channels: The number of output channels C.
        axis: The channel axis of B's output.
        psi: The starting value of the gate's input.
    """

    def __init__(self, base: nn.Module, attention: str, channels: int, *, axis: int = 1, psi: float = 0.1) -> None:
        super().__init__()
        self.base = base
        self.attention = build_attention(attention, channels, axis=axis)
        self.psi = nn.Parameter(torch.full(self.attention.descriptor_shape, psi))
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Map x to E(psi) (.) B(x), both of the base's output shape."""
        y: Tensor = self.base(x)
        scale = self.attention.excite_static(self.psi)
        if self.axis == 1:
            scale = scale.reshape(1, -1, *[1] * (y.ndim - 2))
        return y * scale.to(y.dtype)


def product_on_map(model: nn.Module, attention: str = "se", **options: Any) -> nn.Module:
    """Return a copy of `model` with the gates that `attach` would place, in the reference formulation.

    Args:
        model: The backbone; left as it is.
        attention: A name of the zoo.
        **options: `where` and `example`, as `sites` takes them.

    Raises:
        AttachError: A chosen layer has no rule.
    """
    names = [site.name for site in sf.sites(model, **options)]
    model = copy.deepcopy(model)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        layer = model.get_submodule(name)
        setattr(model.get_submodule(parent), leaf, _product(layer, name, attention))
    return model


def reference_deployed(attached: nn.Module) -> nn.Module:
    """Return an attached model as the reference code deploys it: gates merged, every BatchNorm kept.

    Args:
        attached: A model with gates; left as it is.
    """
    names = [name for name, module in attached.named_modules() if isinstance(module, Foldable)]
    plain = sf.fold(attached, check=False)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(parent), leaf, FusedLayer(plain.get_submodule(name)))
    return plain


def _product(layer: nn.Module, name: str, attention: str) -> ProductOnMap:
    rule = rule_for(layer)
    if rule is None:
        raise AttachError(f"{name}: no rule for {type(layer).__name__}, so it cannot be a site; choose another where")
    return ProductOnMap(layer, attention, rule.channels(layer), axis=rule.axis)
