"""Builds a model by name: our own names first, then timm's, then torchvision's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from stripefold.errors import ConfigError
from stripefold_lab.models.external import external_names, from_timm, from_torchvision, timm_has, torchvision_has
from stripefold_lab.models.resnet import BlockName, ResNet
from stripefold_lab.names import OWN_MODELS, unknown_name


def own_names() -> tuple[str, ...]:
    """The names of the networks that this package brings along."""
    return tuple(OWN_MODELS)


def create_model(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int | None = None,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a classifier by name.

    Args:
        name: One of ``own_names()``; else a timm or torchvision name, also as ``timm/NAME`` or ``torchvision/NAME``.
        num_classes: Width of the last layer.
        in_channels: Channels of the images.
        image_size: Side of the images; None leaves the model's own. Only models of a fixed size are built differently.
        pretrained: Whether timm or torchvision load (and download) their weights.
        options: Keyword arguments that timm or torchvision hand to the network's constructor.

    Returns:
        The model, in training mode; logits are (N, num_classes).

    Raises:
        ConfigError: If no such model is known, or an option does not suit it.

    >>> create_model("resnet20", num_classes=100).fc.out_features
    100
    """
    common: Any = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": image_size,
        "pretrained": pretrained,
        "options": dict(options or {}),
    }
    if name in OWN_MODELS:
        return _own(name, **common)
    library, _, rest = name.partition("/")
    if library == "timm" and rest:
        return from_timm(rest, **common)
    if library == "torchvision" and rest:
        return from_torchvision(rest, **common)
    if timm_has(name):
        return from_timm(name, **common)
    if torchvision_has(name):
        return from_torchvision(name, **common)
    raise ConfigError(unknown_model(name))


def _own(
    name: str, *, num_classes: int, in_channels: int, image_size: int | None, pretrained: bool, options: dict[str, Any]
) -> ResNet:
    if options:
        raise ConfigError(f"model_options are {options}, but {name!r} takes none; set {{}} or take a timm model")
    if pretrained:
        raise ConfigError(f"pretrained is True, but {name!r} has no published weights; take a timm model, or False")
    depth, block = OWN_MODELS[name]
    size = 32 if image_size is None else image_size
    return ResNet(
        depth, block=cast(BlockName, block), num_classes=num_classes, in_channels=in_channels, image_size=size
    )


def unknown_model(name: str) -> str:
    """The message for a name that nobody knows, with the nearest names that somebody knows.

    Args:
        name: What was asked for.
    """
    libraries, known = external_names()
    missing = "" if libraries else '; more names come with pip install "stripefold[vision]"'
    return f"{unknown_name(name, known)}{missing}"
