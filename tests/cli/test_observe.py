"""`stripefold observe`: runs and named models, what is printed where, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stripefold.stripe.report import StripeReport
from stripefold_lab.cli import main
from stripefold_lab.cli import observe as command

SMALL = ["--set", "model=resnet8", "--set", "limit_train=64", "--set", "limit_test=32", "--set", "tensorboard=false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "watched"
    words = ["train", *SMALL, "--set", "warmup_epochs=0", "--epochs", "2", "--form", "dynamic", "--observe-every", "1"]
    assert main([*words, "--set", "accelerator=cpu", "--run-dir", str(folder)]) == 0
    return folder


def test_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (run / "stripes" / "index.html").is_file()
    assert main(["observe", str(run), "--images", "20", "--by-class", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "stripes of ResNet: 3 channel gates over 20 images" in printed.out
    assert "share of the variance over the images that the class explains" in printed.out
    assert f"written: {tmp_path / 'out' / 'index.html'}" in printed.out
    assert printed.err == ""
    report = StripeReport.load(tmp_path / "out" / "stripes.safetensors")
    assert [layer.images for layer in report.layers] == [20] * 3
    # What the run recorded over its epochs is shown with it.
    assert (tmp_path / "out" / "trajectory.json").read_text() == (run / "stripes" / "trajectory.json").read_text()
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "Over training" in page
    assert "<title>Stripes of watched</title>" in page


def test_json_is_all_there_is_on_standard_output(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", str(run), "--images", "8", "--json", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    report = StripeReport.from_dict(json.loads(printed.out))
    assert len(report.layers) == 3
    assert all(len(layer.sample) == 0 for layer in report.layers)
    assert "written: " in printed.err


def test_a_named_model_on_images_and_on_noise(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["observe", "timm/mobilenetv3_small_050", "--size", "32"]
    for data in ("digits", "noise"):
        assert main([*words, "--data", data, "--images", "70"]) == 0
        printed = capsys.readouterr()
        assert "9 channel gates over 70 images" in printed.out
        assert "the weights of timm/mobilenetv3_small_050 are random" in printed.err


def test_a_model_without_attention_is_no_failure(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", "resnet8", "--data", "digits", "--images", "4"]) == 0
    assert "ResNet has no channel attention that depends on the image" in capsys.readouterr().out
    assert main(["observe", str(run), "--data", "noise", "--images", "4"]) == 0
    assert "3 channel gates over 4 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["resnet20"],
            "say which images 'resnet20' is to see: --data folder:PATH, cifar10, digits ..., or --data noise",
        ),
        (["resnet21", "--data", "noise"], "unknown model 'resnet21'; close: "),
        (["runs/none"], "no checkpoint runs/none: no such file or folder"),
        (["none.ckpt"], "no checkpoint none.ckpt: no such file or folder"),
        (["resnet20", "--data", "nothing"], "data is 'nothing'; choose one of digits, folder:PATH"),
        (["resnet20", "--data", "noise", "--pretrained"], "'resnet20' has no published weights"),
        (["resnet20", "--data", "noise", "--device", "tpu"], "--device 'tpu' cannot be used here"),
        (["resnet20", "--data", "noise", "--images", "0"], "'--images'"),
    ],
)
def test_what_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1]
    assert printed.out == ""


def test_options_of_a_name_are_refused_for_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", str(run), "--size", "32"]) == 2
    assert "says itself what it is: leave out --size" in capsys.readouterr().err


def test_a_model_that_declares_no_size_needs_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stripefold.modules.example.infer_example", lambda model: None)
    assert main(["observe", "resnet8", "--data", "noise"]) == 2
    assert "'resnet8' does not say which images it takes, give --size" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(progress: object, images: int, count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_seen", interrupt)
    words = ["observe", "timm/mobilenetv3_small_050", "--size", "32", "--data", "noise", "--images", "4"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert list(tmp_path.iterdir()) == []
