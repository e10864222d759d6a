"""`stripefold sweep`: what it prints and what it refuses; runs are trained in tests/sweep."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from stripefold_lab.cli import main
from stripefold_lab.sweep import plan_sweep, run_sweep
from stripefold_lab.sweep.runner import write_result
from tests.sweep.conftest import Room
from tests.sweep.test_folder import finish


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    """`delta` on the digits, three seeds, all trained but for one run, which failed."""
    from stripefold_lab.sweep import load_sweep
    from stripefold_lab.sweep.folder import write_error

    monkeypatch.chdir(tmp_path)
    room = Room(load_sweep("delta", base="digits", seeds=3), tmp_path / "sweeps" / "delta")
    for place, trial in enumerate(room.trials):
        if trial.name == "repeats=4-seed2":
            write_error(room.paths, trial.name, "Traceback\nTrainingError: the loss is not finite")
        else:
            better = 0.001 * place % 0.007 + (0.1 if trial.setting == "repeats=2" else 0)
            finish(room, place, 0.8 + better)
    return room


WORDS = ["sweep", "delta", "--base", "digits", "--seeds", "3"]


def test_the_list_of_runs(finished: Room, capsys: pytest.CaptureFixture[str]) -> None:
    finished.paths.outcome("backbone-seed1").unlink()
    shutil.rmtree(finished.paths.run("repeats=1-seed2"))
    assert main([*WORDS, "--dry-run"]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if "-seed" in line}
    assert len(lines) == 15
    states = {name: words[-1] for name, words in lines.items()}
    assert (states["backbone-seed0"], states["repeats=4-seed2"]) == ("finished", "failed")
    assert (states["backbone-seed1"], states["repeats=1-seed2"]) == ("begun", "waiting")


def test_the_table(finished: Room, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--table"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split("  ")[1]: line for line in printed.splitlines() if "±" in line and "=" in line}
    assert "*" in rows["repeats=2"]
    assert "*" not in rows["repeats=1"]
    assert "2 of 3" in rows["repeats=4"]
    words = " ".join(printed.split())
    assert (
        "4 comparisons: * where the wider interval, which holds for all 4 together (Bonferroni), leaves out 0" in words
    )
    assert "after the last epoch, in per cent: mean over seeds ± standard deviation" in words
    assert "difference to the backbone" in words
    assert not (finished.paths.root / "results.csv").exists()


def test_one_seed_has_no_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from stripefold_lab.sweep import load_sweep

    monkeypatch.chdir(tmp_path)
    room = Room(load_sweep("delta", base="digits", seeds=1), tmp_path / "sweeps" / "delta")
    finish(room, 0, 0.8)
    finish(room, 1, 0.85)
    assert main(["sweep", "delta", "--base", "digits", "--seeds", "1", "--table"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "repeats=1 1 85.00 +5.00 (one pair: no interval)" in printed
    assert "repeats=2 0 of 1 none no pair of runs" in printed
    assert "One seed: there is no spread and no interval, and nothing can be said about chance" in printed
    assert "±" not in printed
    assert "[" not in printed


def test_failed_runs_are_listed_and_the_status_says_so(
    finished: Room, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stripefold_lab.sweep.launch.launch", lambda *_: None)  # it fails again
    assert main(WORDS) == 1
    printed, error = capsys.readouterr()
    assert printed.startswith("14 of 15 runs are finished\n")
    assert "failed: repeats=4-seed2: TrainingError: the loss is not finite\n" in printed
    assert str(finished.paths.root / "results.parquet") in printed
    assert "1 of 15 runs failed, see " in error
    assert error.count("\n") == 1


def test_ctrl_c_says_what_is_kept(
    finished: Room, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stripefold_lab.sweep.launch.launch", interrupted)
    assert main(WORDS) == 130
    assert "stopped by Ctrl-C; 14 of 15 runs are finished, the same command goes on" in capsys.readouterr().err


def test_sigterm_says_what_is_kept(finished: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    from stripefold.errors import TrainingError

    def ended(*_: object) -> None:
        raise SystemExit(15)

    monkeypatch.setattr("stripefold_lab.sweep.launch.launch", ended)
    with pytest.raises(TrainingError, match="stopped from outside; 14 of 15 runs are finished, the same command goes"):
        run_sweep(finished.sweep, finished.paths.root)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sweep", "delt"], "did you mean 'delta'"),
        (["sweep", "delta", "--seeds", "[1"], "--seeds '[1' is no YAML; give a number, or a list"),
        (["sweep", "delta", "--seeds", "many"], "seeds is 'many'; give a number of seeds"),
        (
            ["sweep", "delta", "--set", "repeats=2"],
            "repeats cannot be set for the sweep delta: it is what varies there",
        ),
        (["sweep", "delta", "--gpus", "1.5"], "gpus is 1.5"),
        (["sweep", "delta", "--address", "ray://head"], "does not run through Ray's client"),
    ],
)
def test_wrong_use_is_one_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "sweeps").exists()


def test_the_files_hold_what_the_table_shows(finished: Room) -> None:
    from pyarrow import csv, parquet

    result = write_result(plan_sweep(finished.sweep, finished.paths.root))
    for name in ("results", "runs"):
        from_csv = csv.read_csv(finished.paths.root / f"{name}.csv").to_pylist()
        from_parquet = parquet.read_table(finished.paths.root / f"{name}.parquet").to_pylist()
        assert [row.keys() for row in from_csv] == [row.keys() for row in from_parquet]
    rows = {row["setting"]: row for row in parquet.read_table(finished.paths.root / "results.parquet").to_pylist()}
    found = rows["repeats=2"]
    assert (found["form"], found["repeats"], found["runs"], found["pairs"]) == ("static", 2, 3, 3)
    assert found["difference_mean"] == pytest.approx(result.rows[2].difference.mean)
    assert found["joint_low"] < found["difference_low"] < found["difference_mean"] < found["difference_high"]
    assert rows["backbone"]["control"] is None
    runs = {row["run"]: row for row in parquet.read_table(finished.paths.root / "runs.parquet").to_pylist()}
    assert runs["repeats=4-seed2"]["error"] == "TrainingError: the loss is not finite"
    assert runs["repeats=4-seed2"]["score"] is None
    assert runs["repeats=4-seed1"]["seed"] == 1


def test_mixed_values_are_text(tmp_path: Path) -> None:
    from pyarrow import parquet

    from stripefold_lab.sweep import load_sweep

    sweep = load_sweep("psi0", base="digits", seeds=1)
    room = Room(dataclasses.replace(sweep, settings={}), tmp_path / "psi0")
    finish(room, 0)
    write_result(plan_sweep(room.sweep, room.paths.root))
    values = parquet.read_table(room.paths.root / "results.parquet").column("psi").to_pylist()
    assert values == [None, "0.0", "0.1", "0.3", "0.5", "1.0", "random"]


def test_files_that_cannot_be_written(finished: Room) -> None:
    from stripefold.errors import TrainingError
    from stripefold_lab.sweep.picture import write_pictures
    from stripefold_lab.sweep.table import write_tables

    result = dataclasses.replace(plan_sweep(finished.sweep, finished.paths.root), folder=finished.paths.root / "no")
    with pytest.raises(TrainingError, match="cannot write .*no/results: No such file"):
        write_tables(result)
    with pytest.raises(TrainingError, match=r"cannot write .*no/results.png: No such file"):
        write_pictures(result)


@pytest.mark.parametrize("module", ["pyarrow", "matplotlib.figure"])
def test_without_a_library_one_line_says_what_to_install(
    module: str, finished: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from stripefold.errors import ConfigError

    result = plan_sweep(finished.sweep, finished.paths.root)
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"needs? {module.partition('.')[0]}.*pip install 'stripefold\[sweep\]'"
    with pytest.raises(ConfigError, match=message):
        write_result(result)
    with pytest.raises(ConfigError, match=message):  # and before the first run, not after the last
        run_sweep(finished.sweep, finished.paths.root / "new")
    assert not (finished.paths.root / "new").exists()


def test_the_help_names_every_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    from stripefold_lab.sweep import sweep_names

    assert main(["sweep", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert all(name in words for name in sweep_names())
