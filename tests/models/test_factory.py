"""One door to every model, and what it says when the name is wrong."""

from __future__ import annotations

import sys

import pytest
import torch

from stripefold.errors import ConfigError
from stripefold_lab.models import create_model
from stripefold_lab.models.factory import unknown_model


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("timm/resnet10t", 1, 32),
        ("resnet10t.c3_in1k", 3, 32),
        ("vit_tiny_patch16_224", 3, 32),
        ("torchvision/mobilenet_v3_small", 3, 32),
        ("shufflenet_v2_x0_5", 3, 32),
    ],
)
def test_other_libraries_models(name: str, channels: int, size: int) -> None:
    model = create_model(name, num_classes=5, in_channels=channels, image_size=size).eval()
    with torch.no_grad():
        assert model(torch.randn(2, channels, size, size)).shape == (2, 5)


def test_options_reach_the_networks_constructor() -> None:
    model = create_model("timm/vit_tiny_patch16_224", image_size=32, options={"patch_size": 4, "depth": 2})
    assert (model.patch_embed.num_patches, len(model.blocks)) == (64, 2)
    assert create_model("torchvision/resnet18", options={"width_per_group": 64}).layer1[0].conv1.out_channels == 64


def test_torchvision_transformer_is_built_for_the_size() -> None:
    model = create_model("torchvision/vit_b_32", num_classes=3, image_size=64)
    assert model.image_size == 64


def test_each_near_name_is_told_once() -> None:
    near = unknown_model("rsenet50").partition("close: ")[2].split(", ")
    assert "resnet50" in near
    assert len(near) == len(set(near))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("resnet21", {}, "unknown model 'resnet21'; close: .*resnet20"),
        ("zzzzzz", {}, "unknown model 'zzzzzz'; own names: resnet8"),
        ("timm/resnet50zz", {}, "timm knows no classifier 'resnet50zz'; close: .*resnet50"),
        ("timm/qqqqqqqqqq", {}, "see timm's list_models"),
        ("torchvision/resnet19", {}, "torchvision knows no classifier 'resnet19'; close: .*resnet18"),
        ("torchvision/resnet18", {"in_channels": 1}, "takes 3 channels, the data has 1; set channels: 3"),
        ("torchvision/resnet18", {"pretrained": True}, "have 1000 classes, the data has 10"),
        ("resnet20", {"pretrained": True}, "'resnet20' has no published weights"),
        ("resnet20", {"options": {"width": 8}}, "model_options are .'width': 8., but 'resnet20' takes none"),
        ("timm/resnet10t", {"options": {"depth": 8}}, "timm cannot build 'resnet10t' with .*model_options .'depth': 8"),
        ("torchvision/resnet18", {"options": {"depth": 8}}, "torchvision cannot build 'resnet18' with model_options"),
        ("timm/mixer_s32_224", {"image_size": -8}, "timm cannot build 'mixer_s32_224' with .*image_size -8"),
    ],
)
def test_refuses_with_a_way_out(name: str, options: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        create_model(name, **options)


@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/resnet18"])
def test_weights_that_cannot_be_downloaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    monkeypatch.setattr("timm.models._builder.load_pretrained", unreachable)
    known = name.partition("/")[2]
    with pytest.raises(ConfigError, match=rf"weights of '{known}'.*leave out pretrained .*service not known"):
        create_model(name, num_classes=1000, pretrained=True)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("timm/resnet50", r"timm is not installed .*pip install \"stripefold\[vision\]\""),
        ("torchvision/resnet18", "torchvision is not installed"),
        ("resnet50", r"unknown model 'resnet50'; close: .*more names come with pip install \"stripefold\[vision\]\""),
    ],
)
def test_names_the_missing_extra(name: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] in {"timm", "torchvision"}]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ConfigError, match=match):
        create_model(name)
