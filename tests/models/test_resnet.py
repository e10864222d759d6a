"""The paper's networks: parameter counts, shapes, names, starting weights."""

from __future__ import annotations

import math

import pytest
import torch

from stripefold.errors import ConfigError
from stripefold_lab.models import ResNet, create_model, own_names


def millions(model: torch.nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2)


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [("resnet164", 100, 1.73), ("resnet164", 10, 1.70), ("resnet20", 10, 0.27), ("resnet110", 10, 1.73)],
)
def test_parameter_counts_are_the_published_ones(name: str, classes: int, expected: float) -> None:
    assert millions(create_model(name, num_classes=classes)) == expected


@pytest.mark.parametrize(("name", "channels", "size"), [("resnet8", 1, 16), ("resnet20", 3, 32), ("resnet29", 3, 96)])
def test_maps_images_to_logits(name: str, channels: int, size: int) -> None:
    model = create_model(name, num_classes=7, in_channels=channels, image_size=size)
    assert model.input_size == (channels, size, size)
    assert model(torch.randn(2, *model.input_size)).shape == (2, 7)
    assert model.forward_features(torch.randn(2, *model.input_size)).shape[2:] == (size // 4, size // 4)


@pytest.mark.parametrize("name", own_names())
def test_depth_counts_the_weighted_layers(name: str) -> None:
    model = create_model(name)
    layers = [
        module
        for path, module in model.named_modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and "downsample" not in path
    ]
    assert len(layers) == int(name.removeprefix("resnet").removesuffix("_bottleneck"))


def test_module_names_are_the_familiar_ones() -> None:
    names = dict(ResNet(29, block="bottleneck").named_modules())
    for name in ("conv1", "bn1", "layer1.0.conv3", "layer3.2.bn3", "layer2.0.downsample.0", "fc"):
        assert name in names


def test_convolutions_start_from_the_reference_distribution() -> None:
    torch.manual_seed(0)
    weight = ResNet(20).layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert abs(weight.mean().item()) < 1e-3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"depth": 21}, "depth is 21; a basic ResNet has depth 6n\\+2: 20 is the nearest"),
        ({"depth": 2}, "depth is 2;"),
        ({"depth": 20, "block": "dense"}, "block is 'dense'; choose one of 'basic', 'bottleneck'"),
        ({"depth": 20, "num_classes": 0}, "num_classes is 0"),
    ],
)
def test_refuses_bad_options(options: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ResNet(**options)
