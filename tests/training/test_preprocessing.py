"""The network's own preprocessing, number for number as timm and torchvision do it, and options in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config

from stripefold.errors import ConfigError
from stripefold_lab.models.preprocessing import declared_preprocessing
from stripefold_lab.training import TrainConfig
from stripefold_lab.training.data import load_data
from stripefold_lab.training.preprocessing import Preprocessing

RNG = np.random.default_rng(0)
TIMM = {  # one of each kind that timm declares
    (str(cfg.mean), cfg.crop_pct, cfg.crop_mode, cfg.interpolation): name
    for name, cfg in ((name, timm.get_pretrained_cfg(name)) for name in timm.list_models())
    if cfg is not None and cfg.input_size[1] == cfg.input_size[2] and cfg.input_size[1] < 400
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for half in ("train", "test"):
        for label, shape in (("tall", (300, 170, 3)), ("wide", (150, 260, 3))):
            (root / half / label).mkdir(parents=True)
            small = Image.fromarray(RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8))
            small.resize(shape[1::-1], Image.Resampling.BICUBIC).save(root / half / label / "0.png")
    return root


def prepared(folder: Path, declared: dict, **changes: object) -> list[torch.Tensor]:
    settings = {**declared, **changes}
    size = settings.pop("size")
    data = load_data(TrainConfig(data=f"folder:{folder}", image_size=size, preprocessing=settings))
    assert all(torch.equal(data.train[0, index][0], data.train[7, index][0]) for index in range(2))
    return [data.test[index][0] for index in range(2)]


def pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((folder / "test").glob("*/*.png"))]


@pytest.mark.parametrize("name", sorted(TIMM.values()))
def test_timms_own(folder: Path, name: str) -> None:
    cfg = timm.get_pretrained_cfg(name).to_dict()
    transform = create_transform(**resolve_data_config(pretrained_cfg=cfg))
    for given in (name, f"timm/{name}"):
        found = prepared(folder, declared_preprocessing(given))
        for image, picture in zip(found, pictures(folder), strict=True):
            assert torch.allclose(image, transform(picture), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "inception_v3", "vit_b_16", "efficientnet_b3", "swin_t"])
def test_torchvisions_own(folder: Path, name: str) -> None:
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    found = prepared(folder, declared_preprocessing(f"torchvision/{name}"))
    for image, picture in zip(found, pictures(folder), strict=True):
        assert torch.allclose(image, transform(picture), atol=1e-6)


def test_every_crop_of_torchvision_gives_its_size() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        found, own = declared_preprocessing(f"torchvision/{name}"), torchvision.models.get_model_weights(name).DEFAULT
        shorter = own.transforms().resize_size[0]
        words = Preprocessing.read({key: found[key] for key in found if key != "size"}).described(
            found["size"], 1.0, ((0.5,), (0.5,))
        )
        assert f"side to {shorter} (" in words


def test_a_control_another_mean_is_another_image(folder: Path) -> None:
    own = declared_preprocessing("timm/mobilevit_xxs")
    first, other = prepared(folder, own), prepared(folder, own, mean=[0.5], std=[0.5])
    assert not torch.allclose(first[0], other[0], atol=0.1)
    assert torch.allclose((first[0] - 0.5) / 0.5, other[0], atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"crop": 1.0}, {"mode": "squash"}, {"mode": "border"}, {"interpolation": "nearest"}, {"std": [2, 2, 2]}]
)
def test_options_take_the_place_of_what_is_declared(folder: Path, change: dict) -> None:
    own = declared_preprocessing("resnet18")
    transform = create_transform(
        (3, own["size"], own["size"]), mean=own["mean"], std=change.get("std", own["std"]),
        crop_pct=change.get("crop", own["crop"]), crop_mode=change.get("mode"),
        interpolation=change.get("interpolation", own["interpolation"]),
    )  # fmt: skip
    for image, picture in zip(prepared(folder, own, **change), pictures(folder), strict=True):
        assert torch.allclose(image, transform(picture), atol=1e-6)
        assert image.shape == (3, own["size"], own["size"])


def test_without_any_it_is_the_data_sets_own(folder: Path) -> None:
    plain = load_data(TrainConfig(data=f"folder:{folder}", image_size=64))
    changed = load_data(TrainConfig(data=f"folder:{folder}", image_size=64, preprocessing={"mean": [0, 0, 0]}))
    assert plain.preparation == (
        "shorter side to 73 (bilinear), middle 64 x 64, mean=0.485,0.456,0.406 std=0.229,0.224,0.225"
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    assert torch.allclose(plain.test[0][0], changed.test[0][0] - mean / std, atol=1e-5)
    assert torch.allclose(plain.train[0, 0][0], changed.train[0, 0][0] - mean / std, atol=1e-5)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_channel_and_numbers_that_are_no_bytes(mode: str, channels: int) -> None:
    settings = {"interpolation": "bicubic", "mode": mode, "crop": 0.9, "mean": [0.1, 0.2, 0.3], "std": [0.5]}
    data = load_data(TrainConfig(data="digits", image_size=24, channels=channels, preprocessing=settings))
    image = data.test[0][0]
    assert image.shape == (channels, 24, 24)
    levels = image * 0.5 + (0.2 if channels == 1 else torch.tensor([0.1, 0.2, 0.3])[:, None, None])
    assert -1e-6 <= levels.min() < 0.1 < 0.9 < levels.max() <= 1 + 1e-6


def test_16_bits_stay_16_bits(tmp_path: Path) -> None:
    for half in ("train", "test"):
        for label, level in (("a", 1000), ("b", 1100)):
            (tmp_path / half / label).mkdir(parents=True)
            Image.fromarray(np.full((9, 9), level, np.uint16)).save(tmp_path / half / label / "0.png")
    settings = {"interpolation": "bicubic", "mean": [0], "std": [1]}
    for preprocessing in (settings, {"mean": [0], "std": [1]}):
        data = load_data(TrainConfig(data=f"folder:{tmp_path}", image_size=8, preprocessing=preprocessing))
        levels = [float(data.test[index][0].mean()) * 65535 for index in range(2)]
        assert levels == pytest.approx([1000, 1100], abs=1)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"size": 3}, "preprocessing has the key 'size'; give crop, mode"),
        ({"crop": 0}, "crop 0; give a share above 0, up to 1"),
        ({"crop": 1.5}, "crop 1.5; give a share"),
        ({"crop": "much"}, "crop 'much'; give a share"),
        ({"mode": "middle"}, "mode 'middle'; choose one of center, squash, border"),
        ({"interpolation": "cubic"}, "interpolation 'cubic'; choose one of nearest, bilinear"),
        ({"mean": [0.5, 0.5]}, r"mean \[0.5, 0.5\]; give 1 or 3 finite numbers"),
        ({"mean": "0.5"}, "mean '0.5'; give 1 or 3 finite numbers"),
        ({"mean": [float("nan")]}, "give 1 or 3 finite numbers"),
        ({"std": [0.1, 0.0, 0.1]}, "give 1 or 3 finite numbers above 0"),
        ({"std": [True]}, "give 1 or 3 finite numbers above 0"),
        ({"mode": "squash"}, "mode 'squash' and no interpolation"),
    ],
)
def test_what_is_refused(settings: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        TrainConfig(preprocessing=settings)


def test_only_classification_and_squares() -> None:
    with pytest.raises(ConfigError, match="preprocessing is .*; it is for classification"):
        TrainConfig(task="segmentation", data="shapes", model="fcn_resnet18", preprocessing={"mean": [0.5]})
    oblong = next(
        name for name in timm.list_models() if len(set((timm.get_pretrained_cfg(name) or FALLBACK).input_size[1:])) == 2
    )
    assert declared_preprocessing(oblong)["size"] == [1024, 768]
    assert declared_preprocessing("resnet20") == {}
    assert declared_preprocessing("nobody_knows_it") == {}


FALLBACK = timm.get_pretrained_cfg("resnet18")
