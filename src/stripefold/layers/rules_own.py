"""Rules for the layers that stripefold itself leaves in a model; by name, because their packages lie above this one."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from stripefold.layers.rule import add_rule
from stripefold.layers.rules_timm import gain_rule

_SCALE = "stripefold.baking.modules.ConstantScale"


def _variant(layer: nn.Module) -> str:
    return ":last" if layer.axis == -1 else ":first"


def _elsewhere(layer: nn.Module) -> str | None:
    return None if layer.axis in (1, -1) else f"its channels are on axis {layer.axis}, not on axis 1 or the last"


def _register() -> None:
    for ending, axis in ((":first", 1), (":last", -1)):
        add_rule(replace(gain_rule(f"{_SCALE}{ending}", "weight", axis=axis), refuse=_elsewhere))
    add_rule(replace(gain_rule(_SCALE, "weight"), variant=_variant))


_register()
