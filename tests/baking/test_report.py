"""The bake report: what it prints, and what it writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from stripefold.baking.report import BakeReport, SiteResult, Speed
from stripefold.errors import BakeError


def site(name: str = "layer1.0.se", **changes: Any) -> SiteResult:
    values: dict[str, Any] = {
        "name": name, "kind": "SqueezeExcite", "channels": 16, "stripe_index": 0.93, "within_over_mean": 0.012,
        "prior": 0.001, "alone": 89.5, "cumulative": 89.5, "outcome": "folded", "place": "layer1.0.bn2",
        "why": "backward into BatchNorm2d",
    }  # fmt: skip
    return SiteResult(**{**values, **changes})


def report(**changes: Any) -> BakeReport:
    dear = site(
        "layer3.0.se", alone=85.0, cumulative=84.0, outcome="dynamic", place="", why="costs 5.00 of the 1 allowed"
    )
    values: dict[str, Any] = {
        "model": "SENet", "sites": (site(), dear), "constants": "mean", "to": "plain", "images": 512,
        "metric": "top-1", "before": 90.0, "constant": 89.5, "recalibrated": 89.75, "after": 89.75,
        "max_drop": 1.0,
    }  # fmt: skip
    return BakeReport(**{**values, **changes})


def test_what_it_prints() -> None:
    text = str(report(speed=Speed(before=0.02, after=0.015, batch=32, device="cpu"), notes=("a note",)))
    lines = text.splitlines()
    assert lines[0] == "baked SENet: 1 of 2 gates (1 folded); constants: mean over 512 images"
    assert any(
        line.split() == ["layer3.0.se", "SqueezeExcite", "16", "0.930", "0.012", "-5.00", "dynamic"] for line in lines
    )
    assert "dynamic: costs 5.00 of the 1 allowed - layer3.0.se" in lines
    flat = " ".join(text.split())
    assert "top-1: as given 90.00, with constants 89.50, BatchNorm re-estimated 89.75, returned 89.75" in flat
    assert "speed: 20.00 -> 15.00 ms for 32 images on cpu (0.750 x)" in lines
    assert lines[-1] == "a note"
    assert any(line.startswith("index: ") and "std/|v|: " in line for line in lines)


def test_our_own_gates_are_shown_whole() -> None:
    made = report(sites=(site("layer1.0.bn2.gates.0.attention", kind="SqueezeExcitation"),))
    assert "layer1.0.bn2.gates.0.attention     SqueezeExcitation" in str(made)


def test_it_is_narrow() -> None:
    names = ["stages.2.blocks.13.conv_with_a_very_long_name." * 2 + str(k) for k in range(9)]
    wide = report(sites=tuple(site(name, kind="AttentionOfAVeryLongName", why="because " * 30) for name in names))
    assert max(len(line) for line in str(wide).splitlines()) <= 100
    assert "and 6 more" in " ".join(str(wide).split())


def test_what_was_not_measured_is_not_shown() -> None:
    text = str(report(sites=(site(alone=None, within_over_mean=None),), before=None, constant=None, recalibrated=None,
                      after=None, metric=None, max_drop=None))  # fmt: skip
    assert "accuracy" not in text
    assert "alone:" not in text
    assert "budget" not in text


def test_its_parts() -> None:
    made = report(sites=(site(), site("b", outcome="multiply"), site("c", outcome="dynamic"), site("d", outcome="asr")))
    assert [s.name for s in made.baked] == ["layer1.0.se", "b", "d"]
    assert [s.name for s in made.folded] == ["layer1.0.se"]
    assert [s.name for s in made.kept] == ["c"]
    assert "3 of 4 gates (1 folded, 1 multiply, 1 ASR gate)" in str(made)


def test_files(tmp_path: Path) -> None:
    made = report(sites=(site(prior=float("inf")), site("b")))
    content = json.loads(made.save(tmp_path / "bake.json").read_text(encoding="utf-8"))
    assert content["sites"][0]["prior"] is None
    assert content["sites"][1]["prior"] == 0.001
    assert content == made.to_dict()
    with made.to_csv(tmp_path / "bake.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["layer1.0.se", "b"]
    assert rows[1]["alone"] == "89.5"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BakeError, match="cannot write the report to"):
        report().save(tmp_path / "none" / "bake.json")
    with pytest.raises(BakeError, match="cannot write the report to"):
        report().to_csv(tmp_path / "none" / "bake.csv")
