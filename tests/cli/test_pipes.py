"""A pipe where a file is expected is refused by name: reading from one may never end."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data
from PIL import Image

from stripefold.errors import ObserveError
from stripefold.stripe.report import StripeReport
from stripefold_lab.cli import main
from tests.onnx.nets import classifier

pytestmark = pytest.mark.timeout(120)
PICTURE = np.zeros((10, 10, 3), np.uint8)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network and two classes of pictures in each half."""
    monkeypatch.chdir(tmp_path)
    onnx.save(classifier(), "net.onnx")
    for half in ("train", "test"):
        for label in ("cat", "dog"):
            Path("pictures", half, label).mkdir(parents=True)
            Image.fromarray(PICTURE).save(f"pictures/{half}/{label}/0.png")
    return tmp_path


def refused(words: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert f"{name} is a pipe (FIFO), not a file" in lines[-1], lines


@pytest.mark.parametrize("command", ["observe", "bake"])
@pytest.mark.parametrize(
    ("pipe", "words"),
    [
        ("pipe.onnx", "pipe.onnx --data noise --preprocess size=8x10"),
        ("pipe.onnx", "pipe.onnx --data pictures/test --preprocess size=8x10"),
        ("pictures/test/dog/1.png", "net.onnx --data pictures/test --preprocess size=8x10"),
        ("pipe.npz", "net.onnx --data pipe.npz"),
    ],
)
def test_of_an_onnx_file(here: Path, command: str, pipe: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(pipe)
    refused(f"{command} {words}", pipe, capsys)


def test_weights_beside_an_onnx_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier()
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, "apart.onnx")
    Path("weights.bin").unlink()
    os.mkfifo("weights.bin")
    refused("observe apart.onnx --data noise --preprocess size=8x10", "weights.bin", capsys)


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin"])
@pytest.mark.parametrize("data", ["noise", "folder:pictures"])
def test_weights_of_a_named_model(here: Path, suffix: str, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(f"pipe.{suffix}")
    words = f"observe timm/seresnet18 --weights pipe.{suffix} --data {data}"
    refused(words.replace("seresnet18", "legacy_seresnet18"), f"pipe.{suffix}", capsys)


@pytest.mark.parametrize("half", ["train", "test"])
def test_a_member_of_a_folder_of_images(here: Path, half: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(f"pictures/{half}/dog/1.png")
    words = "train --model resnet8 --data folder:pictures --epochs 1 --run-dir run --set batch_size=2"
    refused(words, f"{half}/dog/1.png", capsys)


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_stripe_report(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    with pytest.raises(ObserveError, match=rf"pipe\.{suffix} is a pipe \(FIFO\), not a file"):
        StripeReport.load(tmp_path / f"pipe.{suffix}")
