"""`stripefold bake` on a run of seconds: what it prints, what it writes, how that loads again."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from stripefold.asr.gate import DynamicGate, StaticGate
from stripefold.errors import CheckpointError
from stripefold.folding.weight_files import file_info, load_model_, save_model
from stripefold_lab.cli import main
from stripefold_lab.models import create_model
from stripefold_lab.training.loading import load_run

TINY = ["--set", "model=resnet8", "--set", "limit_train=64", "--set", "limit_test=32", "--set", "tensorboard=false"]
FIRST = "layer1.0.bn2.gates.0.attention"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with dynamic SE, trained for an epoch."""
    folder = tmp_path_factory.mktemp("runs") / "dynamic"
    words = ["train", *TINY, "--form", "dynamic", "--set", "warmup_epochs=0", "--epochs", "1", "--run-dir", str(folder)]
    assert main([*words, "--set", "accelerator=cpu"]) == 0
    return folder


def baked(run: Path, *words: str) -> int:
    return main(["bake", str(run), "--images", "32", *words])


def test_bake_writes_the_plain_backbone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, folder = tmp_path / "new" / "baked.safetensors", tmp_path / "report"
    assert baked(run, "-o", str(output), "--report", str(folder), "--speed") == 0
    printed = capsys.readouterr().out
    assert "baked ResNet: 3 of 3 gates (3 folded)" in printed
    assert "speed:" in printed
    assert f"written: {output} (baked)" in printed
    create_model("resnet8", num_classes=10, in_channels=1).load_state_dict(load_file(output))
    assert f"written: {folder / 'index.html'}" in printed
    assert "<h1>Baked: " in (folder / "index.html").read_text(encoding="utf-8")
    content = json.loads((folder / "bake.json").read_text(encoding="utf-8"))
    with (folder / "bake.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [site["name"] for site in content["sites"]]
    assert all(row["alone"] for row in rows)
    assert main(["eval", str(output)]) == 0
    told = capsys.readouterr().out
    assert "(baked)" in told
    assert f"accuracy {content['after']:.2f}%" in told  # of the same test images, from the file


def test_a_part_that_stays_dynamic_loads_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "part.safetensors"
    assert baked(run, "-o", str(output), "--where", FIRST, "--recalibrate", "no") == 0
    assert "1 of 3 gates" in capsys.readouterr().out
    assert file_info(output).extra["bake"]["folded"] == [FIRST]
    again = load_run(output)
    assert again.kind == "baked"
    assert sum(isinstance(module, DynamicGate) for module in again.model.modules()) == 2
    assert baked(output, "--recalibrate", "no") == 0
    assert "2 of 2 gates" in capsys.readouterr().out


def test_to_asr_writes_a_file_that_folds(run: Path, tmp_path: Path) -> None:
    output, folded = tmp_path / "warm.safetensors", tmp_path / "folded.safetensors"
    assert baked(run, "-o", str(output), "--to", "asr") == 0
    warm = load_run(output)
    assert sum(isinstance(module, StaticGate) for module in warm.model.modules()) == 3
    assert main(["fold", str(output), "-o", str(folded)]) == 0
    assert main(["verify", str(output), str(folded)]) == 0


def test_trainable_gates_fold_first(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "warm.safetensors"
    assert baked(run, "-o", str(output), "--to", "asr") == 0
    assert baked(output) == 2
    assert "has trainable gates: fold it first" in capsys.readouterr().err


def test_to_asr_in_a_file_needs_a_run_with_all_its_gates(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-o", str(tmp_path / "warm.safetensors"), "--to", "asr"]
    assert baked(run, *words, "--where", FIRST) == 2
    assert "stays dynamic (left out by where): use bake in Python" in capsys.readouterr().err
    weights = tmp_path / "trained.safetensors"
    name = "timm/mobilenetv3_small_050"
    save_model(create_model(name, num_classes=10, in_channels=1), weights)
    assert main(["bake", name, "--data", "digits", "--size", "32", "--weights", str(weights), *words]) == 2
    assert "--to asr writes a file for runs of `stripefold train --form dynamic` only" in capsys.readouterr().err
    assert not (tmp_path / "warm.safetensors").exists()


def test_a_model_by_name_needs_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "trained.safetensors"
    save_model(create_model("timm/mobilenetv3_small_050"), weights)
    assert main(["bake", "timm/mobilenetv3_small_050", "--weights", str(weights)]) == 2
    assert "baking looks at images: a model by name brings no images; name them with --data" in capsys.readouterr().err


def test_budget_and_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--max-drop", "100", "--finetune-epochs", "1", "--recalibrate", "yes", "--test-images", "16"]
    assert baked(run, *words) == 0
    printed = capsys.readouterr().out
    assert "budget: the metric may fall by 100" in printed
    assert "chosen by the same test images" in printed


def test_a_model_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "timm/mobilenetv3_small_050"
    words = [name, "--data", "digits", "--size", "32", "--images", "16", "--test-images", "8", "--recalibrate", "no"]
    assert main(["bake", *words]) == 2
    assert "would be random: give --weights FILE" in capsys.readouterr().err
    weights, output = tmp_path / "trained.safetensors", tmp_path / "baked.safetensors"
    save_model(create_model(name, num_classes=10, in_channels=1), weights)
    assert main(["bake", *words, "--weights", str(weights), "-o", str(output)]) == 0
    assert "9 of 9 gates" in capsys.readouterr().out
    assert main(["eval", str(output)]) == 0
    with pytest.raises(CheckpointError, match="baked file is loaded into a model of the same structure"):
        load_model_(create_model(name, num_classes=10, in_channels=1), output)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recalibrate", "perhaps"], "choose auto, yes or no"),
        (["--constants", "median"], "choose one of 'mean', 'descriptor'"),
        (["--where", "layer9.*"], "selects no gate"),
        (["--device", "nowhere"], "cannot be used here"),
        (["--weights", "x.safetensors"], "has weights of its own"),
        (["--size", "8"], "says itself what it is"),
    ],
)
def test_what_is_refused(run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert baked(run, *words) == 2
    assert said in capsys.readouterr().err


def test_other_classes_are_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for part, name in ((part, name) for part in ("train", "test") for name in "abcdefghij"):
        (tmp_path / part / name).mkdir(parents=True)
        Image.new("L", (16, 16), 90).save(tmp_path / part / name / "0.png")
    assert baked(run, "--data", f"folder:{tmp_path}") == 0
    assert "(a, b, c ...) are not those that" in capsys.readouterr().err
    assert baked(run, "--data", "digits") == 0
    assert "are not those" not in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--report", "--output"])
def test_a_place_that_cannot_be_is_told_before_the_work(
    run: Path, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert baked(run, option, str(tmp_path / "file" / "deep" / "x.safetensors")) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "cannot write into" in printed.err
    assert "choose another folder" in printed.err


def test_a_file_that_is_there_stays(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "there.safetensors"
    output.write_text("mine", encoding="utf-8")
    assert baked(run, "-o", str(output)) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == "mine"


def test_a_network_without_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    words = ["train", *TINY, "--form", "none", "--set", "warmup_epochs=0", "--epochs", "1", "--run-dir", str(bare)]
    assert main([*words, "--set", "accelerator=cpu"]) == 0
    assert baked(bare) == 2
    assert "no channel attention" in capsys.readouterr().err


def test_other_tasks_have_no_accuracy(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stripefold_lab.cli import deployable as module

    given = module.deployable(str(run), data=None, classes=None, size=None)
    other = replace(given, config=SimpleNamespace(task="segmentation"))
    monkeypatch.setattr(module, "deployable", lambda *words, **options: other)
    assert baked(run) == 2
    assert "of the task 'segmentation', which the command has no accuracy for" in capsys.readouterr().err


def test_settle_then_bake(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, checkpoint = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "settle.pt"
    words = ["--settle", "3", "--settle-way", "ramp", "--distill", "0.5", "--checkpoint", str(checkpoint)]
    assert baked(run, "-o", str(first), *words) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 gates (3 folded)" in printed
    assert "settled: all weights were trained with the constants (ramp, 3 steps)" in printed
    assert checkpoint.exists()
    assert baked(run, "-o", str(second), *words) == 0  # from the finished checkpoint
    one, two = load_file(first), load_file(second)
    assert all(bool((one[name] == two[name]).all()) for name in one)
    capsys.readouterr()
    assert main(["eval", str(first)]) == 0
    assert "(baked)" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--distill", "0.5"], ["--checkpoint", "a.pt"]])
def test_what_belongs_to_settle(run: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert baked(run, *words) != 0
    assert "belong to --settle STEPS" in capsys.readouterr().err
