"""A sample of the sweep over timm's channel gates, and its summary."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from tests.zoo.gates_check import check_gates
from tests.zoo.gates_expected import GATES
from tests.zoo.gates_summary import REASONS, falls_short, read_lines, write_gates_summary

RESULTS = Path(__file__).parent / "results"
SAMPLE = {
    "test_efficientnet_evos": 2,
    "hardcorenas_a": 8,
    "repghostnet_050": 7,
    "ese_vovnet19b_dw": 4,
    "ecaresnet26t": 8,
    "hgnet_tiny": 5,
    "legacy_seresnet18": 8,
    "skresnet18": 8,
    "resnest14d": 4,
    "convnextv2_atto": 12,
    "swiftformer_xs": 4,
    "gcresnet33ts": 0,
    "rexnet_100": 13,
    "eca_nfnet_l0": 12,
    "cspnext_s": 4,
    "edgenext_xx_small": 0,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), SAMPLE.items())
def test_sample(name: str, count: int) -> None:
    line = check_gates(name)
    assert line is not None
    assert not falls_short(line), line
    assert sum(line["found"].values()) == count


def test_above_the_limit() -> None:
    assert check_gates("seresnextaa201d_32x8d") is None


@pytest.mark.parametrize("name", GATES)
def test_expected_classes_exist(name: str) -> None:
    module, _, cls = name.rpartition(".")
    assert hasattr(importlib.import_module(module), cls)


def line(name: str, expected: int, found: int, **more: object) -> dict[str, object]:
    counts = {"expected": {"a.B": expected}, "found": {"a.B": found}, "recorded": found, "hooked": found, "others": 1}
    return {"name": name, **counts, "versions": {"timm": "1"}, **more}


def test_summary(tmp_path: Path) -> None:
    lines = [
        line("good", 3, 3),
        line("short", 9, 9),
        line("short", 4, 2),
        {"name": "died", "failure": "x", "versions": {}},
    ]
    (tmp_path / "gates.jsonl").write_text("".join(f"{json.dumps(part)}\n" for part in lines), encoding="utf-8")
    assert write_gates_summary(tmp_path, {"short": "two are no gates"}) == 1
    text = (tmp_path / "GATES.md").read_text(encoding="utf-8")
    assert "**5 found of 7 expected**, 5 recorded (5 by hooks). 1 architectures exactly as expected, 2 not." in text
    assert "- `short`: 2 / 4 found, 2 recorded. two are no gates" in text
    assert "- `died`: 0 / 0 found, 0 recorded. unexplained: x" in text
    assert "| `a.B` | 2 | 5 / 7 |" in text
    assert [part["name"] for part in read_lines(tmp_path / "gates.jsonl")] == ["died", "good", "short"]
    assert write_gates_summary(tmp_path, {"short": "two are no gates", "died": "memory"}) == 0


def test_results_on_file() -> None:
    """What is published falls short nowhere without a reason."""
    reasons = json.loads(REASONS.read_text(encoding="utf-8"))
    lines = read_lines(RESULTS / "gates.jsonl")
    assert lines
    assert [one["name"] for one in lines if falls_short(one) and one["name"] not in reasons] == []
