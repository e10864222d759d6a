"""Where positions meet a linear map, in architectures of many families; shapes only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stripefold.graph.channels import channel_axes
from stripefold.graph.positions import NoPlace, PositionPlace, position_places
from stripefold.graph.trace import Trace, trace
from stripefold.layers.rule import rule_for


def traced(model: nn.Module, *shape: int) -> Trace:
    return trace(model.eval(), torch.zeros(shape), is_layer=lambda module: rule_for(module) is not None)


def places(model: nn.Module, *shape: int) -> tuple[list[PositionPlace], list[NoPlace]]:
    return position_places(traced(model, *shape).graph)


LIBRARIES: dict[str, tuple[int, str, str, tuple[int, ...], int]] = {
    "timm/resnet18": (1, "global_pool.pool", "pooling", (7, 7), 512),
    "torchvision/resnet18": (1, "avgpool", "pooling", (7, 7), 512),
    "timm/efficientnet_b0": (1, "global_pool.pool", "pooling", (7, 7), 1280),
    "torchvision/squeezenet1_0": (1, "classifier.3", "pooling", (13, 13), 1000),
    "torchvision/swin_t": (1, "avgpool", "pooling", (7, 7), 768),
    "torchvision/vgg11": (1, "classifier.0", "flatten", (7, 7), 512),
    "torchvision/alexnet": (1, "classifier.1", "flatten", (6, 6), 256),
    "timm/mixer_s32_224": (8, "blocks.0.mlp_tokens.fc2", "tokens", (7, 7), 512),
    "timm/resmlp_12_224": (12, "blocks.0.linear_tokens", "tokens", (14, 14), 384),
    "timm/gmlp_ti16_224": (30, "blocks.0.mlp_channels.gate.proj", "tokens", (14, 14), 384),
    "timm/poolformer_s12": (1, "head.global_pool.pool", "pooling", (7, 7), 512),
}


def create(name: str) -> nn.Module:
    library, _, architecture = name.partition("/")
    with torch.device("meta"):
        if library == "timm":
            model: nn.Module = pytest.importorskip("timm").create_model(architecture)
        else:
            model = pytest.importorskip("torchvision").models.get_model(architecture)
        return model


@pytest.mark.parametrize("name", LIBRARIES)
def test_architectures(name: str) -> None:
    count, path, kind, grid, channels = LIBRARIES[name]
    found, _ = places(create(name), 2, 3, 224, 224)
    assert len([place for place in found if not place.aside]) == count
    first = found[0]
    assert (first.name, first.kind, first.grid, first.channels) == (path, kind, grid, channels)
    assert first.size == "x".join(map(str, grid))
    assert first.why


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("torchvision/densenet121", "is called in the forward of the model and not by a module of its own"),
        ("timm/mixer_s32_224", "averages a map whose channels come last"),
    ],
)
def test_means_without_a_place(name: str, what: str) -> None:
    _, without = places(create(name), 2, 3, 224, 224)
    assert [what in each.why for each in without] == [True]


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "timm/convnextv2_atto"])
def test_layers_on_channels_are_no_token_mixing(name: str) -> None:
    found, _ = places(create(name), 2, 3, 224, 224)
    assert all(place.kind == "pooling" for place in found)


def test_the_squeeze_of_an_attention_stands_aside() -> None:
    found, _ = places(create("torchvision/mobilenet_v3_small"), 2, 3, 224, 224)
    assert [place.name for place in found if not place.aside] == ["avgpool"]
    assert len(found) == 10


class Net(nn.Module):
    """A convolution, then whatever the test says."""

    def __init__(self, then: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.then = (then,)

    def forward(self, x: Tensor) -> Tensor:
        return self.then[0](self, self.conv(x))


def test_flattening_in_other_words() -> None:
    ways = {
        "flatten": lambda net, x: net.fc(x.flatten(1)),
        "view": lambda net, x: net.fc(x.view(-1, 24)),
        "reshape and relu": lambda net, x: net.fc(torch.relu(x.reshape(x.shape[0], -1))),
        "dropout": lambda net, x: net.fc(nn.functional.dropout(x.flatten(2).flatten(1), training=False)),
    }
    for way, then in ways.items():
        found, _ = places(Net(then, fc=nn.Linear(24, 2)), 2, 3, 2, 3)
        assert [(place.kind, place.grid, place.channels, place.axis) for place in found] == [
            ("flatten", (2, 3), 4, 1)
        ], way


def test_a_flattened_map_with_channels_last() -> None:
    found, _ = places(Net(lambda net, x: net.fc(x.permute(0, 2, 3, 1).flatten(1)), fc=nn.Linear(24, 2)), 2, 3, 2, 3)
    assert [(place.grid, place.channels, place.axis) for place in found] == [((2, 3), 4, -1)]


def test_flattened_tokens_know_their_map() -> None:
    then = lambda net, x: net.fc(x.flatten(2).transpose(1, 2).flatten(1))  # noqa: E731
    found, _ = places(Net(then, fc=nn.Linear(24, 2)), 2, 3, 2, 3)
    assert [(place.grid, place.channels, place.axis) for place in found] == [((2, 3), 4, -1)]


NO_PLACE = {
    "one position": lambda net, x: net.fc4(x[:, :, :1, :1].flatten(1)),
    "two maps": lambda net, x: net.fc(x.flatten(1) + x.flatten(1).tanh()),
    "channels between": lambda net, x: net.fc(x.permute(0, 2, 1, 3).flatten(1)),
    "samples flattened": lambda net, x: net.fc(x.transpose(0, 1).reshape(2, 24)),
    "called twice": lambda net, x: net.fc(x.flatten(1)) + net.fc(x.tanh().flatten(1)),
    "weight only": lambda net, x: nn.functional.linear(x.flatten(1), net.fc.weight),
    "a maximum": lambda net, x: net.fc4(net.maximum(x).flatten(1)),
    "a part of the positions": lambda net, x: net.fc4(net.partial(x).mean((2, 3))),
    "on channels": lambda net, x: net.fc4(x.permute(0, 2, 3, 1)).sum((1, 2)),
}


@pytest.mark.parametrize("case", NO_PLACE)
def test_no_place(case: str) -> None:
    layers = {
        "fc": nn.Linear(24, 2), "fc4": nn.Linear(4, 2),
        "maximum": nn.AdaptiveMaxPool2d(1), "partial": nn.AvgPool2d((2, 1)),
    }  # fmt: skip
    assert places(Net(NO_PLACE[case], **layers), 2, 3, 2, 3)[0] == []


def test_hidden_features_of_token_mixing_are_no_positions() -> None:
    def then(net: Any, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        return (tokens + net.second(net.first(tokens))).sum(-1)

    found, _ = places(Net(then, first=nn.Linear(6, 6), second=nn.Linear(6, 6)), 2, 3, 2, 3)
    assert [place.name for place in found] == ["second"]


def test_channels_are_followed_through_layers_that_mix_positions() -> None:
    def then(net: Any, x: Tensor) -> Tensor:
        return net.on_channels(net.on_positions(x.flatten(2)).transpose(1, 2).split(3, dim=1)[0])

    graph = traced(Net(then, on_positions=nn.Linear(6, 5), on_channels=nn.Linear(4, 2)), 2, 3, 2, 3).graph
    axes = {node.name: axis for node, axis in zip(graph.nodes, channel_axes(graph), strict=True)}
    assert (axes["conv"], axes["on_positions"], axes["transpose"], axes["split"], axes["on_channels"]) == (
        1,
        1,
        2,
        2,
        2,
    )
    assert axes[""] is None
