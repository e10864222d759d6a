"""A site in the place of an attention module: it multiplies while it trains and folds into layers elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stripefold.asr.site import Site
from stripefold.baking.modules import ConstantScale
from stripefold.errors import FoldError
from stripefold.graph.absorption import FoldTarget
from stripefold.layers.absorb import absorb
from stripefold.layers.rule import rule_for
from stripefold.modules.float64_weights import Float64Weights
from stripefold.modules.foldable import Foldable, FoldNote
from stripefold.modules.modules import move_call_hooks


@dataclass(frozen=True)
class _Taker:
    """A layer and its path.

    Attributes:
        path: dotted path.
        layer: what stands there; where a site of ours has taken the layer's place since, that.
    """

    path: str
    layer: nn.Module

    @property
    def bare(self) -> nn.Module:
        """The layer itself."""
        layer = self.layer
        while isinstance(layer, Site):
            layer = layer.base
        return layer


class ScaleSite(Site):
    """``y = v (.) x`` with v the product of the static gates; ``fold`` writes v into the layers of a target.

    Where the layer before cannot take v (an activation lies between), the layers behind do, on their input side.

    Args:
        scale: the multiplication while there are gates; all ones.
        target: where v goes.
        layers: dotted path -> layer, for the target's parts. Kept as references, not as children: the model has them.
    """

    elsewhere = True

    def __init__(self, scale: ConstantScale, target: FoldTarget, layers: Mapping[str, nn.Module]) -> None:
        rule = rule_for(scale)
        assert rule is not None  # folding.rules_own has one
        super().__init__(scale, rule)
        self._target = target
        self._layers = tuple(_Taker(part.layer, layers[part.layer]) for part in target.parts)

    def check_fold(self, name: str, owners: Mapping[int, list[str]]) -> list[FoldNote]:
        """See ``Foldable``; the layers that take the scale must be in the model, their weights tied to nothing."""
        super().check_fold(name, owners)
        v = self._factor()
        if v is None:
            return []
        for taker in self._layers:
            self._check_layer(name, taker, owners)
        if self._target.nonnegative and bool((v < 0).any()):
            raise FoldError(
                f"cannot fold the gate on {name!r}: a ReLU or a max pooling lies before {self._layers[0].path!r}, and "
                f"{int((v < 0).sum())} of its scales are negative"
            )
        merged = Float64Weights()
        self._merge(v, merged)
        misfit = merged.misfit()
        if misfit is not None:
            paths = {taker.bare: taker.path for taker in self._layers}
            raise FoldError(f"cannot fold the gate on {name!r}: {misfit.refusal(paths)}")
        kinds = " x ".join(gate.attention.name for gate in self.static_gates)
        into = ", ".join(taker.path for taker in self._layers)
        return [FoldNote(name=name, kind=kinds, folded=True, why=f"into {into}")]

    def folded_(self, weights: Float64Weights) -> nn.Module:
        """Fold the scale into the layers; nothing is left in this place."""
        v = self._factor()
        if v is not None:
            self._merge(v, weights)
        return self.without_static_gates_()

    def without_static_gates_(self) -> nn.Module:
        """Drop the gates as they are; nothing is left in this place."""
        nothing = nn.Identity().train(self.training)
        move_call_hooks(self, nothing)
        return nothing

    @torch.no_grad()
    def _factor(self) -> Tensor | None:
        """What multiplies here, (C,), float64; None without gates."""
        v = self.scale(torch.float64)
        return None if v is None else v * self.base.get_parameter("weight").double()

    def _merge(self, v: Tensor, weights: Float64Weights) -> None:
        layers = {taker.path: taker.bare for taker in self._layers}
        for part in self._target.parts:
            absorb(weights, layers[part.layer], part, v)

    def _check_layer(self, name: str, taker: _Taker, owners: Mapping[int, list[str]]) -> None:
        if isinstance(taker.bare, Foldable):
            raise FoldError(
                f"cannot fold the gate on {name!r}: a block stands in the place of {taker.path!r}, which is to take "
                "its scale. Fold before changing that layer"
            )
        for key, tensor in taker.bare._parameters.items():
            if tensor is None:
                continue
            places = owners.get(id(tensor), [])
            if len(places) != 1:
                found = f"tied to {places}" if places else "no longer part of the model"
                raise FoldError(
                    f"cannot fold the gate on {name!r}: {key!r} of {taker.path!r}, which is to take its scale, is "
                    f"{found}. Fold before changing that layer"
                )
