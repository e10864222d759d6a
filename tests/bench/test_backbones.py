"""ViT and ConvNeXt through the command: the script runs, and the kept results hold what is claimed of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import backbone_runs
from tests.training.test_tasks import draw_folder

EXACT = 1e-10


@pytest.mark.slow
def test_the_script_runs(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data")
    words = ["--data", f"folder:{tmp_path / 'data'}", "--recipes", "small-convnext", "--images", "8", "--tested", "4"]
    backbone_runs.main([*words, "--out", str(tmp_path / "out")])
    (row,) = json.loads((tmp_path / "out" / "backbones.json").read_text(encoding="utf-8"))["rows"]
    assert (row["sites"], row["images"], row["stock_keys"]) == (12, 8, True)
    assert row["accuracy"] == row["accuracy_folded"]
    assert row["error64"] <= EXACT < row["control64"]
    assert row["least_move_of_a_gate"] > 0
    assert "`small-convnext`" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_the_kept_results() -> None:
    result = json.loads((backbone_runs.FOLDER / "backbones.json").read_text(encoding="utf-8"))
    assert (backbone_runs.FOLDER / "README.md").read_text(encoding="utf-8") == backbone_runs.page(result)
    assert {row["recipe"] for row in result["rows"]} == set(backbone_runs.RECIPES)
    for row in result["rows"]:
        assert row["stock_keys"]
        assert row["error64"] <= EXACT < 1e-3 < row["control64"]
        assert row["least_move_of_a_gate"] > 1e-4
        assert row["accuracy"] == row["accuracy_folded"] > 1.5 * 100 / row["classes"]  # it has learned something
