"""`stripefold robustness`: table, JSON, files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stripefold.own_files import LIST
from stripefold_lab.cli import main
from tests.robustness.runs import write_run

LITTLE = ["--kinds", "gaussian-noise,batch-random", "--severities", "1,5", "--images", "12"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    return [str(write_run(folder, form, 0)) for form in ("none", "dynamic", "static")]


def test_the_table_and_the_files(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robustness", *runs, *LITTLE, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    for word in ("backbone", "+ SE", "ASR(SE), attached", "ASR(SE), folded", "clean", "gaussian-noise", "batch-random"):
        assert word in printed.out
    assert "on 12 test images of digits, mean over severities 1, 5" in printed.out
    assert "one seed, so nothing is known of the spread" in printed.out
    assert f"written: {tmp_path / 'out'}" in printed.out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"robustness.json", "robustness.csv", "curves.png", "curves.pdf", "curves.svg", LIST}


def test_json(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robustness", runs[0], *LITTLE, "--json", "--seed", "3", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert (told["noise_seed"], told["images"], len(told["scores"])) == (3, 12, 5)
    assert f"written: {tmp_path / 'out'}" in printed.err
    assert told == json.loads((tmp_path / "out" / "robustness.json").read_text(encoding="utf-8"))


def test_a_line_now_and_then(
    runs: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stripefold_lab.cli.progress.LINE_EVERY", 0.0)
    assert main(["robustness", runs[0], *LITTLE]) == 0
    assert "gaussian-noise 1, 1 of 5" in capsys.readouterr().err


def test_a_bar_on_a_terminal(
    runs: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["robustness", runs[0], *LITTLE]) == 0
    assert "clean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kinds", "snow"], "unknown kind 'snow'; choose from"),
        (["--kinds", ","], "no kind of disturbance was named"),
        (["--severities", "low"], "--severities has 'low'; give numbers of 1 to 5, such as 1,3,5"),
        (["--severities", "0,1"], "severity 0 does not exist"),
        (["--images", "0"], "--images"),
    ],
)
def test_what_is_refused(words: list[str], message: str, runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robustness", runs[0], *words]) == 2
    assert message in capsys.readouterr().err


def test_runs_that_are_none(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robustness", str(tmp_path)]) == 2
    assert "holds no checkpoints/last.ckpt" in capsys.readouterr().err
    assert main(["robustness", runs[0], runs[0]]) == 2
    assert "are the same experiment with the same seed 0" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert main(["robustness", runs[0], "-o", str(tmp_path / "file")]) == 2
    assert "a file is in the way" in capsys.readouterr().err
