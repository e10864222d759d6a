"""A network by name is judged on its own preprocessing and on weights of any of the usual files; options win."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from stripefold.folding.weight_files import file_info, save_model
from stripefold_lab.cli import main
from stripefold_lab.cli.deployable import Deployable, deployable
from stripefold_lab.training.loading import load_run

PLAIN, GATED = "timm/mobilevit_xxs", "timm/tf_mobilenetv3_small_075"  # without normalisation, and with gates
SIZE = ["--size", "32"]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for half in ("train", "test"):
        for label, level in (("dark", 60), ("light", 200)):
            (root / half / label).mkdir(parents=True)
            for number in range(3):
                pixels = RNG.integers(level - 50, level + 50, (48, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / half / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    model = timm.create_model(GATED[5:], num_classes=2)
    save_model(model, folder / "net.safetensors")
    state = model.state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, folder / "net.pth.tar")
    torch.save(state, folder / "net.bin")
    other = timm.create_model(GATED[5:], num_classes=2).state_dict()
    torch.save({"state_dict": other, "state_dict_ema": state}, folder / "two.pth")
    return folder


def own_transform(name: str, size: int, **changes: Any) -> Any:
    found = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name.removeprefix("timm/")).to_dict())
    return create_transform(**{**found, "input_size": (3, size, size), **changes})


def first_image(folder: Path) -> Image.Image:
    return Image.open(folder / "test" / "dark" / "0.png")


@pytest.mark.parametrize("name", [PLAIN, GATED, "timm/vit_tiny_patch16_224"])
def test_what_a_command_shows_a_network_is_the_networks_own(folder: Path, name: str) -> None:
    given = deployable(name, data=f"folder:{folder}")
    found = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name[5:]).to_dict())
    transform = create_transform(**found)
    assert torch.allclose(given.data.test[0][0], transform(first_image(folder)), atol=1e-6)
    assert torch.allclose(next(iter(given.calibration(6)))[0].mean(), torch.tensor(0.0), atol=5)
    assert given.about["preprocessing"]["mean"] == list(found["mean"])


def test_options_win(folder: Path) -> None:
    given = deployable(PLAIN, data=f"folder:{folder}", size=32, preprocessing={"mean": [0.4], "crop": 1.0})
    expected = own_transform(PLAIN, 32, mean=(0.4,) * 3, crop_pct=1.0)(first_image(folder))
    assert torch.allclose(given.data.test[0][0], expected, atol=1e-6)
    assert not torch.allclose(given.data.test[0][0], own_transform(PLAIN, 32)(first_image(folder)), atol=0.1)


@pytest.mark.parametrize("file", ["net.safetensors", "net.pth.tar", "net.bin"])
def test_eval_of_a_name_says_what_it_used(folder: Path, weights: Path, file: str, capsys) -> None:
    words = ["eval", GATED, "--data", f"folder:{folder}", *SIZE, "--weights", str(weights / file)]
    assert main(words) == 0
    first, result = capsys.readouterr().out.splitlines()
    mean = timm.get_pretrained_cfg(GATED[5:]).mean
    shown = ",".join(f"{value:g}" for value in mean)
    assert first.startswith(
        f"{GATED} (plain), images: shorter side to 36 (bilinear), middle 32 x 32, mean={shown} std="
    )
    assert "6 images" in result
    model = timm.create_model(GATED[5:], num_classes=2).eval()
    model.load_state_dict(torch.load(weights / "net.bin", weights_only=True))
    paths = sorted((folder / "test").glob("*/*.png"))
    batch = torch.stack([own_transform(GATED, 32)(Image.open(path)) for path in paths])
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(model(batch), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert f"loss {float(loss):.4f}" in result


def test_which_weights_is_asked_in_one_line(folder: Path, weights: Path, capsys) -> None:
    words = ["eval", GATED, "--data", f"folder:{folder}", *SIZE, "--weights", str(weights / "two.pth")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "holds state_dict, state_dict_ema, with other numbers each: say which (key=, or --weights-key)" in error
    assert error.count("\n") == 1
    assert main([*words, "--weights-key", "state_dict_ema"]) == 0


def test_bake_keeps_the_preprocessing_in_its_file(folder: Path, weights: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "baked.safetensors"
    words = [
        GATED,
        "--data",
        f"folder:{folder}",
        *SIZE,
        "--weights",
        str(weights / "net.pth.tar"),
        "--std",
        "0.3,0.3,0.3",
    ]
    assert main(["bake", *words, "--images", "6", "--recalibrate", "no", "-o", str(output)]) == 0
    baked = capsys.readouterr().out
    assert "images: shorter side to 36 (bilinear), middle 32 x 32" in baked
    assert "std=0.3,0.3,0.3" in baked
    run = load_run(output, data=f"folder:{folder}")
    expected = own_transform(GATED, 32, std=(0.3,) * 3)(first_image(folder))
    assert torch.allclose(run.open_data().test[0][0], expected, atol=1e-6)
    assert main(["eval", str(output)]) == 2
    assert "opens nothing here: name them with --data" in capsys.readouterr().err
    assert main(["eval", str(output), "--data", f"folder:{folder}", "--mean", "0.2"]) == 0
    assert "mean=0.2,0.2,0.2 std=0.3,0.3,0.3" in capsys.readouterr().out


def test_observe_and_export_say_and_keep_it(folder: Path, weights: Path, tmp_path: Path, capsys) -> None:
    words = [GATED, "--data", f"folder:{folder}", *SIZE, "--weights", str(weights / "net.bin"), "--classes", "2"]
    assert main(["observe", *words, "--images", "4", "--interpolation", "bicubic", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["layers"]
    assert "images: shorter side to 36 (bicubic), middle 32 x 32" in printed.err
    assert main(["export", *words, "-o", str(tmp_path / "net.safetensors"), "--crop", "1.0"]) == 0
    assert "images: shorter side to 32 (bilinear)" in capsys.readouterr().out
    kept = file_info(tmp_path / "net.safetensors").extra["preprocessing"]
    assert (kept["size"], kept["crop"], kept["interpolation"]) == (32, 1.0, "bilinear")


def test_a_run_keeps_its_own(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    words = ["--set", "model=resnet8", "--set", "limit_train=8", "--set", "limit_test=8", "--set", "tensorboard=false"]
    words += ["--set", "preprocessing={mean: [0.1], std: [0.7]}", "--set", "warmup_epochs=0"]
    assert main(["train", *words, "--form", "dynamic", "--epochs", "1", "--run-dir", str(run)]) == 0
    capsys.readouterr()
    for command in (["eval", str(run)], ["observe", str(run), "--images", "4"], ["bake", str(run)]):
        assert main(command) == 0
        assert "mean=0.1 std=0.7" in capsys.readouterr().out
    assert main(["eval", str(run), "--std", "0.5"]) == 0
    assert "mean=0.1 std=0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "resnet8", "--data", "digits"], "the weights of resnet8 would be random: give --weights FILE"),
        (["eval", "resnet8", "--weights", "none.pth"], "say which images 'resnet8' is to see: --data"),
        (["eval", "resnet8", "--data", "digits", "--weights", "none.pth"], "none.pth does not exist"),
        (
            ["eval", "timm/resnet10t", "--data", "digits", "--pretrained"],
            "'timm/resnet10t' are for 1000 classes",
        ),
        (["observe", "resnet8", "--data", "digits", "--mean", "half"], "--mean 'half': give numbers with commas"),
        (["export", "resnet8", "-o", "x.onnx", "--crop-mode", "left"], "preprocessing has mode 'left'; choose one of"),
        (["eval", "none.ckpt", "--size", "32"], "none.ckpt says itself what it is: leave out --size"),
        (
            ["eval", "timm/vit_base_patch16_sapiens2", "--data", "digits", "--weights", "x.pth"],
            "1024 x 768, and the data give square ones",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, words: list[str], message: str, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_noise_needs_no_preprocessing(capsys) -> None:
    given = deployable(PLAIN, data=None, size=64)
    assert isinstance(given, Deployable)
    assert given.example.shape == (2, 3, 64, 64)
