"""A sweep on a Ray of its own, killed on the way and gone on with; Ctrl-C; a cluster that is only joined."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet
import pytest

ROOT = Path(__file__).parents[2]
# Six runs, two of which fail: the attention has no such option.
TEXT = """
title: Six tiny runs
base: digits
set: {model: resnet8, epochs: 2, limit_train: 64, limit_test: 64, warmup_epochs: 0, accelerator: cpu}
settings:
  se: {attention: se}
  too wide: {attention: se, attention_options: {reductions: 1}}
seeds: 2
"""
# The backbone and seven attentions, three seeds each.
MANY = """
title: Twenty-four tiny runs
base: digits
set: {model: resnet8, epochs: 1, limit_train: 64, limit_test: 64, warmup_epochs: 0, accelerator: cpu}
grid: {attention: [se, ie, eca, ge, ese, gct, scale]}
seeds: 3
"""
WAIT_SECONDS = 240.0
LONG_SECONDS = 1800.0


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command; whatever becomes of the test, none of its processes stays."""
    for name, text in (("six", TEXT), ("many", MANY)):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    sessions: list[int] = []

    def run(name: str = "six") -> subprocess.Popen[str]:
        started = subprocess.Popen(
            [sys.executable, "-m", "stripefold", "sweep", f"{name}.yaml"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # what Ray starts is in it as well, and nothing else
            # Tests in the background of a shell ignore Ctrl-C, and so would what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        sessions.append(started.pid)
        return started

    yield run
    for session in sessions:
        kill(session)


def processes(session: int) -> list[int]:
    """Of a session, those that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def kill(session: int) -> None:
    for process in processes(session):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def traces(folder: Path, name: str = "six") -> dict[str, tuple[int, int]]:
    """What a repeated run would change: when its checkpoint was written, and how many lines it has logged."""
    runs = folder / "sweeps" / name
    return {
        path.stem: (
            (runs / "runs" / path.stem / "checkpoints" / "last.ckpt").stat().st_mtime_ns,
            (runs / "logs" / f"{path.stem}.log").read_text(encoding="utf-8").count("\n"),
        )
        for path in (runs / "outcomes").glob("*.json")
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds Ray's processes in /proc")
def test_a_sweep_survives_sigkill_and_ctrl_c(tmp_path: Path, start: Start) -> None:
    outcomes = tmp_path / "sweeps" / "six" / "outcomes"
    first = start()
    wait_until(lambda: len(list(outcomes.glob("*.json"))) >= 2, "the first runs never ended")
    kill(first.pid)
    first.communicate()
    before = traces(tmp_path)
    assert 2 <= len(before) < 4

    # Ctrl-C in the middle of the continuation: one line, and nothing of Ray is left.
    second = start()
    wait_until(lambda: bool(second.stdout and second.stdout.readline()), "the continuation said nothing")
    wait_until(lambda: len(processes(second.pid)) > 3, "Ray was never started")
    os.killpg(second.pid, signal.SIGINT)  # as a terminal does it: to every process of the command
    _, errors = second.communicate(timeout=WAIT_SECONDS)
    assert second.returncode == 130, errors
    assert "runs are finished, the same command goes on" in errors
    assert errors.count("\n") == 1
    wait_until(lambda: not processes(second.pid), "Ctrl-C left processes behind")

    third = start()
    printed, errors = third.communicate(timeout=WAIT_SECONDS)
    assert third.returncode == 1, errors
    assert "2 of 6 runs failed" in errors
    assert "failed: too-wide-seed0: AttachError: " in printed
    assert before.items() <= traces(tmp_path).items()  # no finished run was touched
    wait_until(lambda: not processes(third.pid), "the sweep left processes behind")

    folder = tmp_path / "sweeps" / "six"
    with (folder / "results.csv").open(encoding="utf-8") as file:
        rows = {row["setting"]: row for row in csv.DictReader(file)}
    assert [rows[name]["runs"] for name in ("backbone", "se", "too wide")] == ["2", "2", "0"]
    with (folder / "runs.csv").open(encoding="utf-8") as file:
        scores = {row["run"]: row["score"] for row in csv.DictReader(file)}
    differences = [float(scores[f"se-seed{seed}"]) - float(scores[f"backbone-seed{seed}"]) for seed in (0, 1)]
    assert float(rows["se"]["difference_mean"]) == pytest.approx(sum(differences) / 2)
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.zoo
@pytest.mark.timeout(2 * LONG_SECONDS)  # minutes on a quiet machine
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds Ray's processes in /proc")
def test_twenty_four_runs_survive_being_killed_twice(tmp_path: Path, start: Start) -> None:
    folder = tmp_path / "sweeps" / "many"
    finished: dict[str, tuple[int, int]] = {}
    for enough in (5, 12):
        killed = start("many")
        wait_until(
            lambda least=enough: len(list((folder / "outcomes").glob("*.json"))) >= least,
            "the runs never ended",
            LONG_SECONDS,
        )
        kill(killed.pid)
        killed.communicate()
        assert finished.items() <= traces(tmp_path, "many").items()
        finished = traces(tmp_path, "many")
        assert enough <= len(finished) < 24
    last = start("many")
    printed, errors = last.communicate(timeout=LONG_SECONDS)
    assert last.returncode == 0, errors
    assert f"{len(finished)} of 24 runs are finished" in printed
    ended = traces(tmp_path, "many")
    assert len(ended) == 24
    assert finished.items() <= ended.items()  # no finished run was touched
    for name, rows in (("results", 8), ("runs", 24)):
        with (folder / f"{name}.csv").open(encoding="utf-8") as file:
            assert len(list(csv.DictReader(file))) == rows
        assert pyarrow.parquet.read_table(folder / f"{name}.parquet").num_rows == rows
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
