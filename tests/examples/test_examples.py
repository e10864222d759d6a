"""The examples run, small."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import ablation, bake_trained, branch_blocks, observe_stripes, own_model, timm_model


def test_timm_model(capsys: pytest.CaptureFixture[str]) -> None:
    timm_model.main("resnet10t", steps=1, size=64)
    assert "load into the stock model" in capsys.readouterr().out


def test_own_model(capsys: pytest.CaptureFixture[str]) -> None:
    own_model.main(steps=2)
    assert "down" in capsys.readouterr().out


def test_ablation(capsys: pytest.CaptureFixture[str]) -> None:
    ablation.main(epochs=1, limit=128)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["se", "scale", "no gates"]


def test_observe_stripes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    observe_stripes.main(str(tmp_path / "stripes"), epochs=1, limit=320)
    printed = capsys.readouterr().out
    assert "3 channel gates over 256 images" in printed
    assert f"open {tmp_path / 'stripes' / 'index.html'}" in printed
    assert (tmp_path / "stripes" / "pictures" / "trajectory.png").is_file()


def test_branch_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    branch_blocks.main(steps=1)
    out = capsys.readouterr().out
    assert "equivalent in float32" in out
    assert "load into the stock network" in out


def test_bake_trained(capsys: pytest.CaptureFixture[str]) -> None:
    bake_trained.main(epochs=1)
    assert "parameters: 176552 -> 174970" in capsys.readouterr().out
