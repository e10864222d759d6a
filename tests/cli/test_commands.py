"""What the commands print and write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stripefold.attention import attention_names
from stripefold_lab.cli import main


def test_attention_prints_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attention"]) == 0
    printed = capsys.readouterr().out
    for name in attention_names():
        assert f" {name} " in printed


def test_sites_shows_chosen_and_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites", "resnet8"]) == 0
    printed = capsys.readouterr().out
    assert "layer3.0.bn2" in printed
    assert "fc" not in printed
    assert main(["sites", "resnet8", "--where", "*.bn1", "--where", "*relu"]) == 0
    printed = capsys.readouterr().out
    assert "layer2.0.bn1" in printed
    assert "refused" in printed


def test_sites_without_a_residual_branch_says_where_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites", "timm/vgg11", "--size", "32"]) == 0
    assert "try --where norm or --where affine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        (
            "inference",
            ["plain", "identical copy", "+ ECA", "ASR(ECA)", "ASR(ECA), folded", "ASR(ECA), folded and fused"],
        ),
        ("training", ["plain", "identical copy", "ASR(ECA)", "ASR(ECA), product on the map", "+ ECA"]),
    ],
)
def test_bench(mode: str, names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "resnet8", "--attention", "eca", "--mode", mode, "--batch", "2", "--size", "16", "--rounds", "2"]
    assert main([*words, "-o", str(tmp_path / "bench.json")]) == 0
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert f"written: {tmp_path / 'bench.json'}" in printed
    assert [row["name"] for row in written["rows"]] == names
    assert all(name in printed for name in names)
    assert written["environment"]["threads"] >= 1
    assert main([*words, "-o", str(tmp_path / "bench.json")]) == 0  # its own file is replaced


@pytest.mark.parametrize(
    ("words", "foreign"),
    [([], "b.json"), (["--mode", "training"], "b.json"), (["--deploy"], "b.png"), (["--table1"], "b.json")],
    ids=["inference", "training", "picture", "table1"],
)
def test_bench_leaves_a_foreign_file(
    words: list[str], foreign: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / foreign).write_text("theirs")
    assert main(["bench", "resnet8", *words, "--rounds", "1", "-o", str(tmp_path / "b.json")]) == 2
    assert f"{foreign} was not written by stripefold and would be overwritten" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(foreign, "theirs")]
