"""stripefold export: from a run or a name to a checked file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stripefold.export.session import OnnxModel
from stripefold.folding.weight_files import file_info
from stripefold_lab.cli import main
from stripefold_lab.training.data import load_data
from stripefold_lab.training.loading import load_run

TINY = ["--set", "model=resnet8", "--set", "limit_train=128", "--set", "tensorboard=false", "--epochs", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["train", *TINY, "--set", "limit_test=64", "--set", "warmup_epochs=0", "--run-dir", str(folder)]
    assert main([*words, "--set", "accelerator=cpu"]) == 0
    return folder


def test_a_run_as_onnx_and_int8(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "net.onnx"
    assert main(["export", str(run), "-o", str(output), "--quantize", "int8", "--calibrate", "64"]) == 0
    printed = capsys.readouterr().out
    assert f"written: {output}: onnx, fused" in printed
    assert "checked on given input, batch 4" in printed
    assert "int8, calibrated on 64 images" in printed
    assert "of 64 images" in printed
    assert "spread: largest channel's range" in printed
    assert "onnxruntime, batch 32" in printed
    assert {path.name for path in output.parent.iterdir()} == {"net.onnx", "net.int8.onnx"}
    loaded = load_run(run)
    x = torch.stack([load_data(loaded.config).test[index][0] for index in range(8)])
    with torch.no_grad():
        truth = loaded.model.eval()(x)
    for name, allowed in (("net.onnx", 1e-5), ("net.int8.onnx", 0.2)):
        found = OnnxModel(output.parent / name)(x)[0]
        assert float((found - truth).abs().max() / truth.abs().max()) < allowed
    assert main(["export", str(run), "-o", str(output)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    words = ["export", str(run), "-o", str(output), "--overwrite", "--quantize", "int8", "--calibrate", "64", "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["form"] == "onnx"
    assert told["int8"]["images"] == 64
    assert {"trained", "folded"} == set(told["int8"]["ranges"]["conv1"])
    assert [report["title"] for report in told["int8"]["speed"]] == ["onnxruntime, batch 1", "onnxruntime, batch 32"]
    assert main(["export", str(run), "-o", str(output), "--overwrite", "--no-check"]) == 0
    assert "not checked" in capsys.readouterr().out


def test_a_run_as_weights_that_other_commands_read(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folded, fused = tmp_path / "folded.safetensors", tmp_path / "fused.safetensors"
    assert main(["export", str(run), "-o", str(folded)]) == 0
    assert main(["export", str(run), "-o", str(fused), "--fuse"]) == 0
    assert [file_info(path).kind for path in (folded, fused)] == ["folded", "fused"]
    for path in (folded, fused):
        assert main(["verify", str(run), str(path)]) == 0
    assert main(["eval", str(folded)]) == 0
    assert main(["export", str(fused), "-o", str(tmp_path / "net.pt2"), "--channels-last"]) == 0
    assert "pt2, fused" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "net.pt2").module()
    loaded = load_run(run)
    x = loaded.spec.example(3)
    with torch.no_grad():
        truth, found = loaded.model.eval()(x), program(x)
    assert float((found - truth).abs().max() / truth.abs().max()) < 1e-5


def test_a_name_at_a_fixed_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "net.onnx"
    assert main(["export", "resnet8", "-o", str(output), "--size", "16", "--classes", "3", "--batch", "2"]) == 0
    printed = capsys.readouterr().out
    assert "compared on random numbers only" in printed
    session = OnnxModel(output).session
    assert session.get_inputs()[0].shape == [2, 3, 16, 16]
    assert session.get_outputs()[0].shape == [2, 3]


def test_a_name_takes_its_size_from_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "net.onnx"
    assert main(["export", "resnet8", "-o", str(output), "--data", "digits"]) == 0
    assert "checked on given input, batch 4" in capsys.readouterr().out
    assert OnnxModel(output).session.get_inputs()[0].shape == ["batch", 1, 8, 8]


def test_a_run_whose_images_are_gone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from stripefold.errors import DataError
    from stripefold_lab.cli.deployable import deployable

    given = deployable(str(run), data=None, classes=None, size=None)
    assert given.images().shape[:2] == (4, 1)
    assert torch.equal(torch.cat(list(given.calibration(40))), torch.cat(list(given.calibration(40, batch=7))))
    lost = type(given)(model=given.model, example=given.example, about={}, without="they are gone")
    assert lost.images() is None
    with pytest.raises(DataError, match="int8 needs images to calibrate on, and they are gone; name them with --data"):
        next(lost.calibration(8))
    of_pixels = given.config.with_overrides(task="segmentation", augmentation="none", data="shapes", channels=3)
    with pytest.raises(DataError, match="int8 is for classifiers"):
        replace(given, config=of_pixels).calibration_images()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["resnet8", "-o", "net.onnx", "--quantize", "int4"], "--quantize 'int4' is unknown"),
        (["resnet8", "-o", "net.pt2", "--quantize", "int8"], "must end in .onnx"),
        (["resnet8", "-o", "net.onnx", "--batch", "many"], "--batch 'many': give dynamic, or a number"),
        (["resnet8", "-o", "net.onnx", "--quantize", "int8"], "int8 needs images to calibrate on"),
        (["resnet8", "-o", "net.h5"], "must end in .safetensors, .pt2, .onnx"),
        (["resnet8", "-o", "net.onnx", "--data", "folder:nowhere"], "no folder nowhere"),
        (["nowhere.ckpt", "-o", "net.onnx"], "nowhere.ckpt"),
        (["resnet_of_mine", "-o", "net.onnx"], "unknown model"),
    ],
)
def test_refused(
    words: list[str], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == 2
    assert match in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_say_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stripefold.modules.example.infer_example", lambda _: None)
    assert main(["export", "resnet8", "-o", str(tmp_path / "net.onnx")]) == 2
    assert "'resnet8' does not say which images it takes, give --size" in capsys.readouterr().err


def test_options_that_a_run_decides(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "-o", str(tmp_path / "net.onnx"), "--classes", "4"]) == 2
    assert "says itself what it is" in capsys.readouterr().err


def test_images_with_other_classes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torchvision.io import write_png

    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), str(tmp_path / part / name / "1.png"))
    assert main(["export", str(run), "-o", str(tmp_path / "net.onnx"), "--data", f"folder:{tmp_path}"]) == 2
    assert "was trained on 10 classes" in capsys.readouterr().err
