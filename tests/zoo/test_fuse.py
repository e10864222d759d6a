"""The fuse sweep itself, on the smallest architectures: every promise is measured, a broken one is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from tests.zoo import fuse_summary, fuse_sweep
from tests.zoo.fuse_check import check_fuse, shortened
from tests.zoo.fuse_families import check_family, families, page
from tests.zoo.fuse_subjects import build, contents

LINE = {
    "name": "a", "versions": {"timm": "1"}, "blocks": 3, "layer_scales": 2, "batchnorms": 9, "batchnorms_left": 0,
    "layer_scales_left": 0, "why_left": {}, "error64": 1e-15, "image_dependence": 0.1, "control": 0.2,
    "again_folded": 0, "again_same": True, "float64_kept": True, "bfloat16_kept": True,
    "bfloat16_rounded_otherwise": 0, "timm_left": 4, "timm_float64": "RuntimeError: mixed",
}  # fmt: skip


@pytest.mark.slow
def test_one_architecture() -> None:
    line = check_fuse("test_vit2")
    assert line["layer_scales"] > 0
    assert line["layer_scales_left"] == line["batchnorms_left"] == 0
    assert line["error64"] <= 1e-10 < line["control"]
    assert line["image_dependence"] > 1e-3
    assert line["again_same"]
    assert not line["again_folded"]
    assert line["float64_kept"]
    assert line["bfloat16_kept"]
    assert line["bfloat16_rounded_otherwise"] == 0
    assert line["timm_left"] == 0


def test_contents_of_an_architecture() -> None:
    found = contents(build("repvit_m0_9"))
    assert found["blocks"] > 50
    assert found["layer_scales"] == 0


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_summary, "PAGE", tmp_path / "FUSE.md")
    broken = LINE | {"name": "b", "error64": 1e-3, "batchnorms_left": 1, "why_left": {"it is used by x.y": 1}}
    failed = {"name": "c", "failure": "RuntimeError: no", "versions": {"timm": "1"}}
    fuse_summary.write_summary({x["name"]: x for x in (LINE, broken, failed)}, {"a": {}, "b": {}, "c": {}})
    page = (tmp_path / "FUSE.md").read_text(encoding="utf-8")
    assert "2 of 3 architectures measured (timm 1)." in page
    assert "| float64 error <= 1e-10 | 1 | `b` |" in page
    assert "| a second call changes nothing | 2 | none |" in page
    assert "| `a` | 9 | 4 | 0 | 1.0e-15 | RuntimeError: mixed |" in page
    assert "it is used by ... (1 architectures, such as `b`)" in page
    assert "Failed: `c`: RuntimeError: no" in page


def test_results_are_kept_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_sweep, "RESULTS", tmp_path / "fuse.jsonl")
    monkeypatch.setattr(fuse_sweep, "run_apart", lambda name: {"name": name, "failure": "no", "seconds": 0})
    fuse_sweep.sweep(["b", "a", "b"], jobs=2)
    assert list(fuse_sweep.read()) in (["b", "a"], ["a", "b"])
    fuse_sweep.settle(["a", "b"])
    assert list(fuse_sweep.read()) == ["a", "b"]
    assert (tmp_path / "fuse.jsonl").read_text(encoding="utf-8").count("\n") == 2


def test_a_failure_is_a_line() -> None:
    assert "no_such_architecture" in fuse_sweep.run_here("no_such_architecture")["failure"]


@pytest.mark.slow
def test_a_shortened_model_runs_with_a_block_of_every_kind() -> None:
    whole = timm.create_model("mobilenetv5_base", num_classes=0).eval()
    kinds = {type(block) for stage in whole.blocks for block in stage}
    short = shortened(timm.create_model("mobilenetv5_base", num_classes=0)).eval()
    assert {type(block) for stage in short.blocks for block in stage} == kinds
    assert all(len({type(block) for block in stage}) == len(stage) for stage in short.blocks)
    assert sum(map(len, short.blocks)) < sum(map(len, whole.blocks)) / 2
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert short(x).shape == whole(x).shape


@pytest.mark.slow
def test_a_family_and_its_page() -> None:
    found = families()
    assert found["timm.models.convnext"] == "test_convnext"
    assert len(found) == len(set(found.values())) > 50
    lines = [check_family(name) for name in ("test_convnext", "test_vit")]
    assert lines[0]["scale"] == {"folded": {"ConvNeXtBlock": 9}, "left": []}
    assert lines[1]["addition"]["left"][0][1] == "it differs along 2 axes: (1, 17, 64)"
    assert lines[0]["error64"] <= 1e-10 < 1e-3 < lines[0]["control"]
    text = page(lines)
    assert "2 families; largest error" in text
    assert "| `test_convnext` | 0, 0 | 9 ConvNeXtBlock |" in text
    assert "- addition of VisionTransformer: it differs along 2 axes: (1, 17, 64) (`test_vit`)" in text
