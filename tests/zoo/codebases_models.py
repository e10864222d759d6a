"""Models of code bases that know nothing of stripefold, small ones, with random weights and small images."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model of a package.

    Attributes:
        package: As one installs it.
        name: For the table.
        build: Makes it.
        shape: Of an example of two samples, without the batch axis.
    """

    package: str
    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def inputs(self, seed: int, batch: int = 2) -> Tensor:
        """Normal numbers in float64."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *self.shape, generator=generator, dtype=torch.float64)


def models() -> Iterator[Model]:
    """All of them, package by package."""
    for rows in (_smp, _monai, _ultralytics, _speechbrain, _efficientnet, _torchreid, _effdet, _peft):
        yield from rows()


def _from(module: str, name: str, *args: Any, **options: Any) -> nn.Module:
    made: nn.Module = getattr(importlib.import_module(module), name)(*args, **options)
    return made


def _smp() -> Iterator[Model]:
    rows = (
        ("Unet", "resnet18", {}),
        ("Unet", "se_resnet50", {"decoder_attention_type": "scse"}),
        ("UnetPlusPlus", "efficientnet-b0", {}),
        ("FPN", "mobilenet_v2", {}),
        ("Linknet", "densenet121", {}),
        ("DeepLabV3Plus", "timm-regnety_002", {}),
        ("PAN", "resnet18", {}),
        ("MAnet", "resnet18", {}),
        ("UPerNet", "resnet18", {}),
        ("Segformer", "mit_b0", {}),
    )
    for name, encoder, options in rows:
        build = partial(
            _from, "segmentation_models_pytorch", name, encoder_name=encoder, encoder_weights=None, classes=3, **options
        )
        side = 128 if name == "PAN" else 64
        yield Model(package="segmentation-models-pytorch", name=f"{name} {encoder}", build=build, shape=(3, side, side))


def _monai() -> Iterator[Model]:
    flat = {"spatial_dims": 2, "in_channels": 1}
    rows: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
        ("UNet", {**flat, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 2},
         (1, 64, 64)),
        ("UNet", {**flat, "spatial_dims": 3, "out_channels": 2, "channels": (8, 16), "strides": (2,)}, (1, 16, 16, 16)),
        ("BasicUNet", {**flat, "out_channels": 2, "features": (8, 8, 16, 16, 32, 8)}, (1, 64, 64)),
        ("AttentionUnet", {**flat, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2)}, (1, 64, 64)),
        ("SegResNet", {**flat, "init_filters": 8, "out_channels": 2}, (1, 64, 64)),
        ("DenseNet121", {**flat, "out_channels": 3}, (1, 64, 64)),
        ("SEResNet50", {**flat, "num_classes": 3}, (1, 64, 64)),
        ("EfficientNetBN", {**flat, "model_name": "efficientnet-b0", "pretrained": False, "num_classes": 3},
         (1, 64, 64)),
        ("ViT", {**flat, "img_size": (32, 32), "patch_size": (8, 8), "hidden_size": 48, "mlp_dim": 96, "num_layers": 3,
                 "num_heads": 4, "classification": True}, (1, 32, 32)),
        ("UNETR", {**flat, "out_channels": 2, "img_size": (32, 32), "feature_size": 8, "hidden_size": 48, "mlp_dim": 96,
                   "num_heads": 4}, (1, 32, 32)),
    )  # fmt: skip
    for name, options, shape in rows:
        build = partial(_from, "monai.networks.nets", name, **options)
        yield Model(package="monai", name=f"{name} {len(shape) - 1}d", build=build, shape=shape)


def _ultralytics() -> Iterator[Model]:
    rows = (
        ("DetectionModel", "yolov8n.yaml"), ("DetectionModel", "yolov5n.yaml"), ("DetectionModel", "yolov9t.yaml"),
        ("DetectionModel", "yolov10n.yaml"), ("DetectionModel", "yolo11n.yaml"),
        ("SegmentationModel", "yolov8n-seg.yaml"),
        ("PoseModel", "yolov8n-pose.yaml"), ("ClassificationModel", "yolov8n-cls.yaml"),
    )  # fmt: skip
    for kind, name in rows:
        build = partial(_from, "ultralytics.nn.tasks", kind, name, verbose=False)
        yield Model(package="ultralytics", name=name.removesuffix(".yaml"), build=build, shape=(3, 64, 64))


def _speechbrain() -> Iterator[Model]:
    room = "speechbrain.lobes.models."
    rows: tuple[tuple[str, str, tuple[Any, ...], dict[str, Any], tuple[int, ...]], ...] = (
        ("ECAPA_TDNN", "ECAPA_TDNN", (20,), {"channels": [16, 16, 16, 16, 48], "lin_neurons": 12,
         "attention_channels": 8, "se_channels": 8}, (40, 20)),
        ("Xvector", "Xvector", (), {"in_channels": 20, "tdnn_channels": [16, 16, 16, 16, 48], "lin_neurons": 12},
         (40, 20)),
        ("ResNet", "ResNet", (), {"input_size": 40, "channels": [8, 8, 16, 16], "block_sizes": [1, 1, 1, 1],
         "lin_neurons": 16}, (40, 40)),
        ("CRDNN", "CRDNN", (), {"input_size": 20, "cnn_blocks": 1, "cnn_channels": [8], "rnn_layers": 1,
         "rnn_neurons": 12, "dnn_blocks": 1, "dnn_neurons": 12, "rnn_bidirectional": False}, (40, 20)),
        ("ContextNet", "ContextNet", (), {"input_shape": (2, 40, 20), "out_channels": 16, "conv_channels": [16, 16],
         "strides": [1, 2], "num_blocks": 2, "num_layers": 2, "inner_dim": 4, "residuals": [False, True]}, (40, 20)),
    )  # fmt: skip
    for module, name, args, options, shape in rows:
        build = partial(_from, room + module, name, *args, **options)
        yield Model(package="speechbrain", name=name, build=build, shape=shape)


def _efficientnet() -> Iterator[Model]:
    for name in ("efficientnet-b0", "efficientnet-b1"):
        build = partial(_efficientnet_named, name)
        yield Model(package="efficientnet-pytorch", name=name, build=build, shape=(3, 64, 64))


def _efficientnet_named(name: str) -> nn.Module:
    made: nn.Module = importlib.import_module("efficientnet_pytorch").EfficientNet.from_name(name)
    return made


def _torchreid() -> Iterator[Model]:
    rows = (
        ("osnet_x0_25", (3, 128, 64)), ("osnet_ain_x0_25", (3, 128, 64)), ("osnet_ibn_x1_0", (3, 128, 64)),
        ("mlfn", (3, 128, 64)), ("shufflenet", (3, 128, 64)), ("mobilenetv2_x1_0", (3, 128, 64)),
        ("shufflenet_v2_x1_0", (3, 128, 64)),
    )  # fmt: skip
    for name, shape in rows:
        build = partial(
            _from, "torchreid.reid.models", "build_model", name, num_classes=5, pretrained=False, use_gpu=False
        )
        yield Model(package="torchreid", name=name, build=build, shape=shape)


def _effdet() -> Iterator[Model]:
    for name in ("tf_efficientdet_lite0", "efficientdet_d0"):
        yield Model(package="effdet", name=name, build=partial(_efficientdet, name), shape=(3, 128, 128))


def _efficientdet(name: str) -> nn.Module:
    effdet = importlib.import_module("effdet")
    config = effdet.get_efficientdet_config(name)
    config.image_size, config.num_classes = (128, 128), 3
    made: nn.Module = effdet.EfficientDet(config, pretrained_backbone=False)
    return made


def _peft() -> Iterator[Model]:
    rows = (
        ("LoraConfig", "vit_tiny_patch16_224", {"target_modules": ["qkv"]}, {"img_size": 64}),
        ("LoraConfig", "resnet18", {"target_modules": ["conv2"]}, {}),
        ("LoHaConfig", "resnet18", {"target_modules": ["conv2"]}, {}),
        ("LoraConfig", "mobilenetv3_small_050", {"target_modules": ["conv_pwl"]}, {}),
        ("IA3Config", "vit_tiny_patch16_224", {"target_modules": ["qkv", "fc2"], "feedforward_modules": ["fc2"]},
         {"img_size": 64}),
    )  # fmt: skip
    for kind, name, adapter, options in rows:
        build = partial(_with_adapter, kind, name, adapter, options)
        yield Model(package="peft", name=f"{kind.removesuffix('Config')} {name}", build=build, shape=(3, 64, 64))


def _with_adapter(kind: str, name: str, adapter: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    import timm

    peft = importlib.import_module("peft")
    model = timm.create_model(name, num_classes=5, **options)
    made: nn.Module = peft.get_peft_model(model, getattr(peft, kind)(**adapter))
    return made
