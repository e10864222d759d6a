"""The sweep itself: crashes and hangs do not end it, results are resumed, the summary tells everything."""

from __future__ import annotations

import json

import pytest

from tests.zoo import check, models_faulty, record, run, summary
from tests.zoo.subject import Subject
from tests.zoo.worker import run_one


@pytest.fixture
def folder(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    monkeypatch.setattr(summary, "FOLDER", tmp_path)
    monkeypatch.setattr(summary, "LIBRARIES", ("timm",))
    return tmp_path


def line(name: str, **others: object) -> dict[str, object]:
    figures = {
        "gain": 1.0,
        "error64": 1.2345e-16,
        "error32": 1e-7,
        "noise32": 1e-7,
        "image_dependence": 0.1,
        "control": 1.0,
    }
    return {
        "name": name,
        "passed": True,
        "params": 5,
        "where": "norm",
        "sites": 2,
        "steps": 1,
        "seconds": 1.0,
        **figures,
        **others,
    }


def failure(name: str) -> dict[str, object]:
    return {"name": name, "passed": False, "failure": "it broke"}


def test_a_model_that_cannot_be_attached_is_a_line() -> None:
    found = run_one("faulty", "no_layer")
    assert not found["passed"]
    assert "affine: no such layer" in found["failure"]


def test_a_size_that_did_not_work_is_no_failure_of_a_line_that_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([False, True, False])

    def checked(subject: Subject) -> dict[str, object]:
        if not next(sizes, False):
            raise check.Unfit("too small")
        return {"sites": 2}

    monkeypatch.setattr(check, "check", checked)
    monkeypatch.setattr(models_faulty, "subjects", lambda name, subjects=models_faulty.subjects: 2 * subjects(name))
    assert run_one("faulty", "no_layer") == {"name": "no_layer", "passed": True, "tried": "too small", "sites": 2}
    assert run_one("faulty", "no_layer") == {"name": "no_layer", "passed": False, "failure": "too small"}


def test_no_line_that_passed_has_a_failure() -> None:
    for library in run.LIBRARIES:
        lines = record.Results(library).lines.values()
        assert lines
        assert not [line["name"] for line in lines if line["passed"] == ("failure" in line)]


@pytest.mark.slow
def test_crash_and_hang_do_not_end_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = run.Worker()
    try:
        assert "ended with code 3" in worker.run("faulty", "crash")["failure"]
        assert "affine: no such layer" in worker.run("faulty", "no_layer")["failure"]
        monkeypatch.setattr(run, "TIMEOUT", 0.2)
        assert "no result after" in worker.run("faulty", "hang")["failure"]
    finally:
        worker.stop()


def test_results_are_resumed_and_the_last_line_counts(folder) -> None:
    results = record.Results("timm")
    for entry in (failure("b"), line("a"), line("gone"), line("b"), failure("c")):
        results.add(entry)
    again = record.Results("timm")
    assert again.passed() == {"a", "b", "gone"}
    again.keep_only(["a", "b", "c"])
    again.settle(["c", "b", "a"])
    written = [json.loads(text) for text in (folder / "timm.jsonl").read_text().splitlines()]
    assert [entry["name"] for entry in written] == ["c", "b", "a"]
    assert written[1]["error64"] == 1.23e-16
    assert record.Results("timm", fresh=True).lines == {}


def test_results_of_other_versions_are_done_again(folder) -> None:
    results = record.Results("timm")
    results.add(line("a"))
    results.versions = {"torch": "0"}
    assert results.passed() == set()


def test_an_exclusion_has_its_reason_and_is_no_failure(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "exclusions", lambda library: {"b": "it computes in integers"})
    results = record.Results("timm")
    for entry in (line("a"), failure("b"), failure("c")):
        results.add(entry)
    assert [entry["name"] for entry in results.failures()] == ["c"]
    summary.write_summary()
    page = (folder / "SUMMARY.md").read_text()
    assert "3 models" in page
    assert "**1 passed**, 1 failed, 1 excluded" in page
    assert "- `b`: it computes in integers" in page
    assert "- `c`: it broke" in page


def test_exclusions_are_of_known_libraries() -> None:
    assert set(json.loads(record.EXCLUSIONS.read_text(encoding="utf-8"))) == set(run.LIBRARIES)
