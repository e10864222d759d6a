"""Rounds, ratios, settings."""

from __future__ import annotations

import json

import pytest
import torch

from stripefold.errors import ConfigError, DataError
from stripefold_lab.bench.report import Report, Spread
from stripefold_lab.bench.timing import Candidate, Settings, compare, interleave


def recorder(name: str, calls: list[str]) -> Candidate:
    return Candidate(name=name, run=lambda: calls.append(name), prepare=lambda: calls.append(f"prepare {name}"))


def test_interleave_alternates_and_rotates() -> None:
    calls: list[str] = []
    samples = interleave([recorder("a", calls), recorder("b", calls)], Settings(rounds=3, warmup=1))
    runs = [name for name in calls if not name.startswith("prepare")]
    assert runs == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert calls[0::2] == [f"prepare {name}" for name in runs]
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = {"plain": [1.0, 10.0, 100.0], "twice": [2.0, 20.0, 200.0]}
    monkeypatch.setattr("stripefold_lab.bench.timing.interleave", lambda *_: samples)
    candidates = [Candidate(name=name, run=lambda: None) for name in samples]
    report = compare("drift", candidates, Settings(rounds=3, memory=False), date="2024-01-01")
    assert report.rows[1].ratio == Spread(median=2.0, lower=2.0, upper=2.0)
    assert report.rows[1].seconds.median == 20.0
    assert report.rows[1].peak_bytes is None
    assert report.environment["torch"] == torch.__version__


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_names_are_unique(names: list[str]) -> None:
    with pytest.raises(ConfigError, match="unique names"):
        interleave([recorder(name, []) for name in names], Settings())


@pytest.mark.parametrize("field", ["rounds", "calls"])
def test_too_few(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}=0 is too small"):
        Settings(**{field: 0})


def test_unknown_dtype() -> None:
    with pytest.raises(ConfigError, match="unknown dtype 'float8'"):
        Settings(dtype="float8")


def test_report_keeps_claims_through_a_file(tmp_path) -> None:
    torch.manual_seed(0)
    candidates = [Candidate(name=name, run=lambda: torch.ones(64)) for name in ("plain", "copy")]
    report = compare("ones", candidates, Settings(rounds=3), date="2024-01-01")
    report = report.with_limits({"copy": {"ratio": 0.0}, "plain": {"seconds": 10.0, "peak_bytes": 256}})
    assert [row.missed() for row in report.rows] == [[], ["ratio"]]
    assert report.row("copy").peak_ratio == 1.0
    assert "MISSED" in str(report)
    assert "seconds <= 10.00 s: holds, peak_bytes <= 0.0 MiB: holds" in report.markdown()
    report.save(tmp_path / "results" / "ones.json")
    assert Report.load(tmp_path / "results" / "ones.json") == report


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.pop("rows"), "rows is None; it must be a list"),
        (
            lambda c: c["rows"][0]["seconds"].update(median="fast"),
            "median of seconds of .* is 'fast'",
        ),
        (lambda c: c["rows"][0]["limits"].update(speed=1.0), "a claim is about 'speed', which nothing measures"),
        (lambda c: c.update(later=1), "it has an unknown entry 'later'"),
    ],
)
def test_reports_that_are_none(change, match: str, tmp_path) -> None:
    report = compare("ones", [recorder("plain", [])], Settings(rounds=1, memory=False))
    report.save(tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    change(content)
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"r.json is no report of a measurement: {match}"):
        Report.load(tmp_path / "r.json")


def test_a_claim_about_what_was_not_measured_is_missed() -> None:
    report = compare("ones", [recorder("plain", [])], Settings(rounds=1, memory=False))
    assert report.with_limits({"plain": {"peak_ratio": 1.0}}).rows[0].missed() == ["peak_ratio"]
