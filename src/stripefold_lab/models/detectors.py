"""Object detectors of torchvision, at its own sizes and on small backbones."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from stripefold.errors import ConfigError
from stripefold_lab.models.backbones import build_mobilenet, build_resnet, norm_layer, stage_ends
from stripefold_lab.models.external import _load, published_weights, unknown_among

STAGE_WIDTHS = (64, 128, 256, 512)
SMALL = {
    **{
        f"{head}_{backbone}_fpn": (head, backbone)
        for head in ("fasterrcnn", "maskrcnn", "retinanet")
        for backbone in ("resnet18", "resnet34")
    },
    "ssdlite_mobilenet_v3_small": ("ssdlite", "mobilenet_v3_small"),
    "ssdlite_mobilenet_v3_large": ("ssdlite", "mobilenet_v3_large"),
}
RATIOS = (0.5, 1.0, 2.0)


def detector_names() -> tuple[str, ...]:
    """Every name that ``create_detector`` knows; keypoint detectors are left out."""
    return (*SMALL, *_own_names())


def _own_names() -> list[str]:
    names = _load("torchvision.models").list_models(module=_load("torchvision.models.detection"))
    return [name for name in names if not name.startswith("keypoint")]


def create_detector(
    name: str, *, num_classes: int, image_size: int, pretrained: bool = False, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build a detector: in training it gives its losses, in eval mode boxes, labels and scores of each image.

    Args:
        name: ``fasterrcnn_resnet18_fpn``, ``maskrcnn_resnet18_fpn``, ``retinanet_resnet18_fpn`` (18 or 34),
            ``ssdlite_mobilenet_v3_small`` (or large), or one of torchvision's names such as
            ``fasterrcnn_resnet50_fpn``.
        num_classes: With the background.
        image_size: Side of the images; detectors of one size of their own (``ssd300_vgg16``) bring images to theirs.
        pretrained: Whether torchvision loads (and downloads) the backbone's ImageNet weights.
        options: ``norm`` (``batch`` or ``frozen``); with a feature pyramid ``width`` (its channels), ``stages`` (how
            many of the backbone) and ``anchor`` (an anchor's side in strides); and keyword arguments of
            torchvision's class or builder, such as ``rpn_post_nms_top_n_train``.

    Raises:
        ConfigError: If torchvision is missing, no such network is known, or an option does not suit it.
    """
    given = dict(options or {})
    try:
        if name in SMALL:
            head, backbone = SMALL[name]
            sizes: dict[str, Any] = {"num_classes": num_classes, "image_size": image_size, "pretrained": pretrained}
            if head == "ssdlite":
                return _ssdlite(backbone, **sizes, **given)
            return _on_pyramid(head, backbone, **sizes, **given)
        if name in _own_names():
            return _own(name, num_classes, image_size, pretrained, given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cannot build the detector {name!r} with model_options {given}: {error}") from error
    raise ConfigError(unknown_among("detector", name, detector_names()))


def _own(name: str, num_classes: int, image_size: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    fixed = {} if name.startswith("ssd") else {"min_size": image_size, "max_size": image_size}
    weights = "DEFAULT" if pretrained else None
    with published_weights(name):
        model = _load("torchvision.models").get_model(
            name, weights=None, weights_backbone=weights, num_classes=num_classes, **{**fixed, **options}
        )
        return cast("nn.Module", model)


def _on_pyramid(
    head: str,
    backbone: str,
    *,
    num_classes: int,
    image_size: int,
    pretrained: bool,
    norm: str = "batch",
    width: int = 64,
    stages: int = 4,
    anchor: float = 4.0,
    **options: Any,
) -> nn.Module:
    """Faster R-CNN, Mask R-CNN or RetinaNet; RetinaNet's pyramid starts at stride 8, as in its paper."""
    detection = _load("torchvision.models.detection")
    first = 1 if head == "retinanet" else 0
    if stages not in range(first + 1, 5):
        raise ConfigError(f"model_options: stages is {stages!r}; give {first + 1} to 4 stages of the backbone")
    body = _load("torchvision.models.detection.backbone_utils").BackboneWithFPN(
        build_resnet(backbone, norm=norm, pretrained=pretrained),
        return_layers={f"layer{stage + 1}": str(stage - first) for stage in range(first, stages)},
        in_channels_list=list(STAGE_WIDTHS[first:stages]),
        out_channels=width,
    )
    # One level more than stages: the pyramid's last map, halved once again.
    strides = [4 * 2**level for level in range(first, stages + 1)]
    anchors = _load("torchvision.models.detection.anchor_utils").AnchorGenerator(
        sizes=_anchor_sizes(head, strides, anchor), aspect_ratios=(RATIOS,) * len(strides)
    )
    sizes = {"num_classes": num_classes, "min_size": image_size, "max_size": image_size}
    classes = {"fasterrcnn": detection.FasterRCNN, "maskrcnn": detection.MaskRCNN, "retinanet": detection.RetinaNet}
    _check_known(options, classes[head])
    if head == "retinanet":
        return cast("nn.Module", detection.RetinaNet(body, anchor_generator=anchors, **sizes, **options))
    pool = _load("torchvision.ops").MultiScaleRoIAlign([str(stage) for stage in range(stages)], 7, 2)
    return cast("nn.Module", classes[head](body, rpn_anchor_generator=anchors, box_roi_pool=pool, **sizes, **options))


def _check_known(options: Mapping[str, Any], detector: type) -> None:
    """Refuse what no constructor names: torchvision's detectors take, and drop, any keyword."""
    known = {name for each in detector.__mro__ for name in inspect.signature(each).parameters}
    unknown = sorted(options.keys() - known)
    if unknown:
        close = difflib.get_close_matches(unknown[0], sorted(known), n=3)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise ConfigError(f"model_options: {detector.__name__} takes no {unknown[0]!r}{hint}")


def _anchor_sizes(head: str, strides: list[int], anchor: float) -> tuple[tuple[int, ...], ...]:
    """Faster R-CNN: one side per level; RetinaNet: three, a third of an octave apart (Lin et al. 2017, section 4)."""
    octaves = (0, 1 / 3, 2 / 3) if head == "retinanet" else (0,)
    return tuple(tuple(round(anchor * stride * 2**octave) for octave in octaves) for stride in strides)


def _ssdlite(
    backbone: str, *, num_classes: int, image_size: int, pretrained: bool, norm: str = "batch", **options: Any
) -> nn.Module:
    """SSDlite for any size, put together as torchvision does for 320 pixels."""
    ssdlite, ssd = (_load(f"torchvision.models.detection.{name}") for name in ("ssdlite", "ssd"))
    _check_known(options, ssd.SSD)
    utilities = _load("torchvision.models.detection._utils")
    layer = norm_layer(norm, eps=0.001, momentum=0.03)
    features = build_mobilenet(backbone, norm=norm, pretrained=pretrained, reduced_tail=not pretrained).features
    body = ssdlite.SSDLiteFeatureExtractorMobileNet(features, stage_ends(features)[-2], layer)
    boxes = _load("torchvision.models.detection.anchor_utils").DefaultBoxGenerator(
        [[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95
    )
    widths = utilities.retrieve_out_channels(body, (image_size, image_size))
    head = ssdlite.SSDLiteHead(widths, boxes.num_anchors_per_location(), num_classes, layer)
    defaults = {
        "score_thresh": 0.001,
        "nms_thresh": 0.55,
        "detections_per_img": 300,
        "topk_candidates": 300,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    model = ssd.SSD(body, boxes, (image_size, image_size), num_classes, head=head, **{**defaults, **options})
    return cast("nn.Module", model)
