"""train, eval, fold, verify and demo on a run of seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stripefold.folding.weight_files import file_info
from stripefold_lab.cli import main
from stripefold_lab.cli.demo import free_folder
from stripefold_lab.models import create_model

TINY = ["--set", "model=resnet8", "--set", "limit_train=64", "--set", "limit_test=32", "--set", "tensorboard=false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["train", *TINY, "--set", "warmup_epochs=0", "--epochs", "2", "--seed", "3", "--run-dir", str(folder)]
    assert main([*words, "--set", "accelerator=cpu"]) == 0
    return folder


def test_train_leaves_a_run(run: Path) -> None:
    assert {"config.yaml", "metrics.csv", "folded.safetensors", "summary.md"} <= {path.name for path in run.iterdir()}


def test_resume_takes_the_options_of_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "--run-dir", str(run)]) == 0
    assert "0 of them in the process that wrote this" in capsys.readouterr().out


def test_train_tells_a_program(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "--run-dir", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verification"]["passed"]
    assert told["measures"]["attached"].keys() == {"loss", "accuracy"}
    assert told["measures"]["attached"]["accuracy"] == told["measures"]["folded"]["accuracy"]
    assert (told["epochs_run"], told["images"] > 0, Path(told["folded_file"]).is_file()) == (0, True, True)


def test_eval(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run)]) == 0
    assert main(["eval", str(run / "folded.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "(attached)" in lines[0]
    assert "(folded)" in lines[2]
    accuracy = [line.split(",")[0] for line in lines if line.startswith("accuracy")]
    assert len(accuracy) == 2
    assert accuracy[0] == accuracy[1]


def test_fold_writes_the_stock_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "folded.safetensors"
    assert main(["fold", str(run), "-o", str(output)]) == 0
    assert "folded 3, left 0" in capsys.readouterr().out
    stock = create_model("resnet8", num_classes=10, in_channels=1)
    stock.load_state_dict(load_file(output))
    assert file_info(output).kind == "folded"
    assert main(["verify", str(run), str(output)]) == 0
    assert "equivalent in float32" in capsys.readouterr().out
    assert main(["fold", str(run), "-o", str(output)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["fold", str(run), "-o", str(output), "--overwrite", "--json"]) == 0
    printed = capsys.readouterr()
    assert "equivalent in float32" in json.loads(printed.out)["verification"]
    assert f"written: {output} (folded)" in printed.err


def test_fuse(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "fused.safetensors"
    assert main(["fold", str(run), "-o", str(output), "--fuse"]) == 0
    assert main(["verify", str(run), str(output)]) == 0
    assert main(["eval", str(output)]) == 0
    assert "(fused)" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "fused.safetensors"
    assert main(["fold", str(run), "--fuse", "--dry-run", "-o", str(output)]) == 0
    assert main(["fold", str(run), "--fuse", "--dry-run"]) == 0
    assert main(["fold", str(run), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("would fold 12, would leave 0") == 2  # three gates and nine norms
    assert "would fold 3, would leave 0" in printed
    assert not output.exists()
    assert main(["fold", str(run), "--fuse", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [note["folded"] for note in plan["notes"]] == [True] * 12
    assert plan["fused"]
    assert main(["fold", str(run)]) == 2
    assert "name it with -o, or look first with --dry-run" in capsys.readouterr().err


def test_a_folded_file_is_not_folded_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fold", str(run / "folded.safetensors"), "-o", str(tmp_path / "x.safetensors")]) == 2
    assert "has no gates to fold" in capsys.readouterr().err


def test_a_dynamic_attention_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both, output = tmp_path / "both", tmp_path / "left.safetensors"
    words = ["train", *TINY, "--form", "both", "--set", "warmup_epochs=0", "--epochs", "1", "--run-dir", str(both)]
    assert main([*words, "--set", "accelerator=cpu"]) == 0
    assert main(["fold", str(both), "-o", str(output), "--fuse"]) == 2
    assert "keeps its dynamic attention" in capsys.readouterr().err
    assert main(["fold", str(both), "-o", str(output)]) == 0
    assert "`stripefold bake` replaces it by constants" in capsys.readouterr().out
    assert main(["verify", str(both), str(output)]) == 0
    assert "equivalent in float32" in capsys.readouterr().out


def test_verify_tells_a_mismatch(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    weights = load_file(run / "folded.safetensors")
    weights["layer2.0.bn2.weight"] *= 1.01
    changed = tmp_path / "changed.safetensors"
    save_file(weights, changed)  # a file of other origin: the reference's backbone is taken
    page = tmp_path / "report" / "index.html"
    assert main(["verify", str(run), str(changed), "--report", str(page.parent)]) == 1
    assert "No: in float32" in page.read_text(encoding="utf-8")  # what one wants to look at
    assert main(["verify", str(run), str(run), "--report", str(page.parent), "--json"]) == 0
    assert "Yes: in float32" in page.read_text(encoding="utf-8")
    assert f"written: {page}" in capsys.readouterr().err
    (page.parent / "layers.csv").write_text("mine", encoding="utf-8")
    assert main(["verify", str(run), str(run), "--report", str(page.parent)]) == 2
    assert "was changed since stripefold wrote it" in capsys.readouterr().err
    assert main(["verify", str(run), str(changed)]) == 1
    printed = capsys.readouterr().err
    assert "NOT equivalent" in printed
    assert "layer2.0" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("name", ["nowhere.safetensors", "nowhere.ckpt", "."])
def test_missing_files(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / name), str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.startswith("stripefold: ")


def test_an_exported_program_is_no_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    assert main(["verify", str(run), str(tmp_path / "net.onnx")]) == 2
    assert "is an exported program" in capsys.readouterr().err


def test_a_file_of_unknown_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(1)}, tmp_path / "odd.safetensors")
    assert main(["eval", str(tmp_path / "odd.safetensors")]) == 2
    assert "does not say which run it comes from" in capsys.readouterr().err


def test_a_run_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--run-dir", str(run)]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_a_file_in_the_way_of_a_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["fold", str(run), "-o", str(tmp_path / "file" / "x.safetensors")]) == 2
    assert "a file is in the way; choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [("plain.bin", "end its name in .safetensors"), ("folder.safetensors", "a folder of this name is in the way")],
)
def test_a_name_that_holds_no_weights(
    run: Path, name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    for command in ("fold", "bake"):
        assert main([command, str(run), "-o", str(tmp_path / name), "--overwrite"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert said in printed.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.safetensors"]


def test_free_folder(tmp_path: Path) -> None:
    wanted = tmp_path / "demo"
    assert free_folder(wanted) == wanted
    wanted.mkdir()
    (tmp_path / "demo-2").mkdir()
    assert free_folder(wanted) == tmp_path / "demo-3"


@pytest.mark.slow
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from stripefold_lab import training

    real = training.load_config
    small = {"limit_train": 64, "limit_test": 32, "accelerator": "cpu", "warmup_epochs": 0}
    monkeypatch.setattr(
        "stripefold_lab.training.load_config", lambda *a, **k: real(*a, **{**k, **small}), raising=False
    )
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert main(["demo", "--epochs", "1", "--rounds", "2", "-o", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    for words in (
        "accuracy folded",
        "equivalent in float32",
        "backbone + SE",
        "folded and fused",
        "folded.safetensors",
    ):
        assert words in printed
    assert main(["demo", "--epochs", "1", "--rounds", "2", "-o", str(tmp_path / "json"), "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["verification"]["passed"]
    assert told["measures"]["attached"] == told["measures"]["folded"]
    assert [row["name"] for row in told["speed"]["rows"]][:2] == ["plain", "identical copy"]
    assert Path(told["folded_file"]).is_file()
    assert "epoch 1/1" in printed.err
