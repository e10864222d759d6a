"""Torchvision's residual networks and MobileNets as the bodies of larger networks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

from torch import nn

from stripefold.errors import ConfigError
from stripefold_lab.models.external import _load, published_weights

WEIGHTS = "DEFAULT"


def norm_layer(norm: str, **batch_options: float) -> Callable[..., nn.Module]:
    """The normalisation layer for a word.

    Args:
        norm: ``batch``, or ``frozen``: statistics and affine part that no training changes.
        batch_options: Options of the BatchNorm.

    Raises:
        ConfigError: If it is another word.
    """
    if norm == "batch":
        return functools.partial(nn.BatchNorm2d, **batch_options)  # type: ignore[arg-type]
    if norm == "frozen":
        return cast("Callable[..., nn.Module]", _load("torchvision.ops").FrozenBatchNorm2d)
    raise ConfigError(f"model_options: norm is {norm!r}; choose batch or frozen")


def build_resnet(name: str, *, norm: str, pretrained: bool) -> nn.Module:
    """A residual network of torchvision.

    Args:
        name: Torchvision's name.
        norm: As for ``norm_layer``.
        pretrained: Whether its ImageNet weights are loaded.

    Raises:
        ConfigError: If ``norm`` is another word, or the weights cannot be loaded.
    """
    build = getattr(_load("torchvision.models"), name)
    with published_weights(name):
        return cast("nn.Module", build(weights=WEIGHTS if pretrained else None, norm_layer=norm_layer(norm)))


def build_mobilenet(name: str, *, norm: str, pretrained: bool, **options: Any) -> Any:
    """A MobileNetV3 of torchvision, with ``features``.

    Args:
        name: Torchvision's name.
        norm: As for ``norm_layer``; a BatchNorm follows its batches faster than the ImageNet recipe has it.
        pretrained: Whether its ImageNet weights are loaded.
        options: Of torchvision's builder, such as ``dilated`` and ``reduced_tail``.

    Raises:
        ConfigError: If ``norm`` is another word, or the weights cannot be loaded.
    """
    build = getattr(_load("torchvision.models"), name)
    # 0.01, torchvision's own, needs hundreds of steps before evaluation means anything; SSDlite's builder takes 0.03.
    layer = norm_layer(norm, eps=0.001, momentum=0.03)
    with published_weights(name):
        return build(weights=WEIGHTS if pretrained else None, norm_layer=layer, **options)


def stage_ends(features: Any) -> list[int]:
    """Where a MobileNet's features halve, first and last layer included; torchvision marks the blocks that do."""
    marked = [index for index, block in enumerate(features) if getattr(block, "_is_cn", False)]
    return [0, *marked, len(features) - 1]
