"""Semantic segmentation networks of torchvision, at its own sizes and on small backbones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from stripefold.errors import ConfigError
from stripefold_lab.models.backbones import build_mobilenet, build_resnet, stage_ends
from stripefold_lab.models.external import _load, published_weights, unknown_among

SMALL_BACKBONES = ("resnet18", "resnet34")
SMALL = {
    **{f"{head}_{backbone}": (head, backbone) for head in ("fcn", "deeplabv3") for backbone in SMALL_BACKBONES},
    "lraspp_mobilenet_v3_small": ("lraspp", "mobilenet_v3_small"),
}
STAGE_WIDTHS = (64, 128, 256, 512)


def segmenter_names() -> tuple[str, ...]:
    """Every name that ``create_segmenter`` knows."""
    return (*SMALL, *_own_names())


def _own_names() -> list[str]:
    return cast("list[str]", _load("torchvision.models").list_models(module=_load("torchvision.models.segmentation")))


def create_segmenter(
    name: str, *, num_classes: int, pretrained: bool = False, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build a segmentation network; it gives ``{"out": logits}`` with logits (N, num_classes, H, W).

    Args:
        name: ``fcn_resnet18``, ``fcn_resnet34``, ``deeplabv3_resnet18``, ``deeplabv3_resnet34`` (output stride 8, as
            torchvision's own; a basic block cannot be dilated, so these end after the second stage unless ``stages``
            says more), ``lraspp_mobilenet_v3_small``, or one of torchvision's names such as ``fcn_resnet50``.
        num_classes: With the background.
        pretrained: Whether torchvision loads (and downloads) the backbone's ImageNet weights.
        options: ``norm`` (``batch`` or ``frozen``) and ``stages`` (2 to 4) of the small ones; for torchvision's own,
            keyword arguments of its builder.

    Raises:
        ConfigError: If torchvision is missing, no such network is known, or an option does not suit it.
    """
    given = dict(options or {})
    try:
        if name in SMALL:
            return _small(*SMALL[name], num_classes=num_classes, pretrained=pretrained, **given)
        if name in _own_names():
            weights = "DEFAULT" if pretrained else None
            with published_weights(name):
                model = _load("torchvision.models").get_model(
                    name, weights=None, weights_backbone=weights, num_classes=num_classes, **given
                )
                return cast("nn.Module", model)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cannot build the segmenter {name!r} with model_options {given}: {error}") from error
    raise ConfigError(unknown_among("segmentation network", name, segmenter_names()))


def _small(head: str, backbone: str, *, num_classes: int, pretrained: bool, **options: Any) -> nn.Module:
    if head == "lraspp":
        return _lraspp(backbone, num_classes=num_classes, pretrained=pretrained, **options)
    return _on_resnet(head, backbone, num_classes=num_classes, pretrained=pretrained, **options)


def _on_resnet(
    head: str, backbone: str, *, num_classes: int, pretrained: bool, norm: str = "batch", stages: int = 2
) -> nn.Module:
    if stages not in (2, 3, 4):
        raise ConfigError(f"model_options: stages is {stages!r}; give 2 (output stride 8), 3 (16) or 4 (32)")
    segmentation, utilities = _load("torchvision.models.segmentation"), _load("torchvision.models._utils")
    width = STAGE_WIDTHS[stages - 1]
    body = utilities.IntermediateLayerGetter(
        build_resnet(backbone, norm=norm, pretrained=pretrained), return_layers={f"layer{stages}": "out"}
    )
    if head == "fcn":
        return cast("nn.Module", segmentation.FCN(body, segmentation.fcn.FCNHead(width, num_classes)))
    return cast("nn.Module", segmentation.DeepLabV3(body, segmentation.deeplabv3.DeepLabHead(width, num_classes)))


def _lraspp(backbone: str, *, num_classes: int, pretrained: bool, norm: str = "batch") -> nn.Module:
    """Low features of stride 8 and high ones of stride 16, as torchvision builds it on the large backbone."""
    utilities = _load("torchvision.models._utils")
    features = build_mobilenet(backbone, norm=norm, pretrained=pretrained, dilated=True).features
    ends = stage_ends(features)
    low, high = ends[-4], ends[-1]
    body = utilities.IntermediateLayerGetter(features, return_layers={str(low): "low", str(high): "high"})
    model = _load("torchvision.models.segmentation").LRASPP(
        body, features[low].out_channels, features[high].out_channels, num_classes
    )
    return cast("nn.Module", model)
