"""Torchvision: classification, segmentation, video, optical flow and detection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torchvision import models
from torchvision.models import detection, segmentation, video

from tests.zoo.subject import Subject, floats, images

_CLASSIFICATION = {
    "alexnet": 96,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 96,
    "inception_v3": 299,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 64,
    "vit_b_32": 64,
    "wide_resnet50_2": 64,
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    "vit_b_32": {"image_size": 64},
}
_SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large")
_VIDEO = {"mc3_18": (4, 32, 32), "r2plus1d_18": (4, 32, 32), "s3d": (16, 224, 224), "swin3d_t": (4, 32, 32)}
_DETECTION = (
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "ssdlite320_mobilenet_v3_large",
)
_SIDE = 96
_DETECTION_SIDES = {"ssdlite320_mobilenet_v3_large": 320}


def names() -> list[str]:
    """What is tested."""
    return [*_CLASSIFICATION, *_SEGMENTATION, *_VIDEO, *_DETECTION]


def subjects(name: str) -> list[Subject]:
    """One subject per model: the sizes above are known to work."""
    if name in _DETECTION:
        return [_detector(name)]
    if name in _SEGMENTATION:
        return [
            _subject(name, lambda: segmentation.__dict__[name](weights=None, weights_backbone=None), (_SIDE, _SIDE))
        ]
    if name in _VIDEO:
        return [_subject(name, lambda: video.__dict__[name](weights=None), _VIDEO[name])]
    side = _CLASSIFICATION[name]
    return [_subject(name, lambda: models.get_model(name, weights=None, **_OPTIONS.get(name, {})), (side, side))]


def _subject(name: str, build: Callable[[], nn.Module], size: tuple[int, ...]) -> Subject:
    return Subject(name=name, build=build, inputs=lambda seed: images(seed, 3, *size))


def _detector(name: str) -> Subject:
    def build() -> nn.Module:
        return detection.__dict__[name](weights=None, weights_backbone=None, **_few_boxes(name))

    side = _DETECTION_SIDES.get(name, _SIDE)

    def inputs(seed: int) -> tuple[list[Tensor]]:
        return (list(images(seed, 3, side, side).sigmoid()),)

    return Subject(name=name, build=build, inputs=inputs, loss=_detection_loss, smooth_outputs=_head_outputs)


def _few_boxes(name: str) -> dict[str, Any]:
    """Small images, few proposals, and a threshold that random scores pass."""
    if name.startswith("ssdlite"):  # its own size cannot be changed
        return {"score_thresh": 0.001, "topk_candidates": 20}
    size = {"min_size": _SIDE, "max_size": _SIDE}
    if "rcnn" not in name:
        return size | {"score_thresh": 0.001, "topk_candidates": 20}
    kept = {f"rpn_{when}_nms_top_n_{phase}": 20 for when in ("pre", "post") for phase in ("train", "test")}
    return size | kept | {"box_score_thresh": 0.0, "box_detections_per_img": 10, "box_batch_size_per_image": 16}


def _detection_loss(model: nn.Module, example: tuple[list[Tensor]], generator: Generator) -> Tensor:
    """The model's own losses on made-up boxes."""
    (batch,) = example
    targets = []
    for image in batch:
        whole = image.shape[-1]
        corner = torch.rand(3, 2, generator=generator) * whole / 2
        size = 8 + torch.rand(3, 2, generator=generator) * (whole / 2 - 10)
        target = {"boxes": torch.cat([corner, corner + size], 1), "labels": torch.tensor([1, 1, 1])}
        target["masks"] = torch.ones(3, whole, whole, dtype=torch.uint8)
        points = (corner + size / 2)[:, None].expand(3, 17, 2)
        target["keypoints"] = torch.cat([points, torch.ones(3, 17, 1)], 2)
        targets.append(target)
    losses = model(batch, targets)
    return torch.stack([loss for loss in losses.values() if loss.requires_grad]).sum()


def _head_outputs(model: nn.Module, example: tuple[list[Tensor]]) -> dict[str, Tensor]:
    """Features and head outputs of a detector, and its second stage on fixed boxes."""
    batch = torch.stack(example[0])
    found = dict(model.backbone(batch))
    outputs = {f"backbone.{key}": tensor for key, tensor in found.items()}
    features = list(found.values())
    if not hasattr(model, "roi_heads"):
        return outputs | {f"head.{path}": tensor for path, tensor in floats(model.head(features)).items()}
    outputs |= {f"rpn.{path}": tensor for path, tensor in floats(model.rpn.head(features)).items()}
    half = _SIDE / 2
    boxes = [torch.tensor([[4.0, 8.0, half, half + 9.0], [half, 2.0, half + 40.0, half]], dtype=batch.dtype)] * len(
        batch
    )
    return outputs | _second_stage(model.roi_heads, found, boxes)


def _second_stage(heads: nn.Module, features: dict[str, Tensor], boxes: list[Tensor]) -> dict[str, Tensor]:
    sizes = [(_SIDE, _SIDE)] * len(boxes)
    outputs = floats(heads.box_predictor(heads.box_head(heads.box_roi_pool(features, boxes, sizes))))
    for kind in ("mask", "keypoint"):
        pool = getattr(heads, f"{kind}_roi_pool", None)
        if pool is not None:
            hidden = getattr(heads, f"{kind}_head")(pool(features, boxes, sizes))
            outputs[kind] = getattr(heads, f"{kind}_predictor")(hidden)
    return {f"roi.{path}": tensor for path, tensor in outputs.items()}
