"""SIGTERM to one of several processes: the others end within seconds, and the run is resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.crew import free_port

ROOT = Path(__file__).parents[2]
SECONDS = 20.0
"""Data readers of the process that ended keep its connections for up to five; a busy machine doubles everything."""


def terminated(folder: Path, kinds: str, count: int, seed: int) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.term_runs", str(folder), kinds, str(count), str(seed)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_terminated(trials: list[dict[str, Any]]) -> None:
    for trial in trials:
        assert not trial["hung"], trial
        assert trial["seconds"] < SECONDS, trial
        assert trial["resumed"], trial
        for said in trial["said"]:
            ended_before = isinstance(said, dict)  # the signal may come when all is done
            assert ended_before or "another process has ended" in said, trial


@pytest.mark.slow
@pytest.mark.parametrize("kinds", ["two", "three,workers"])
def test_the_others_end_within_seconds(tmp_path: Path, kinds: str) -> None:
    check_terminated(terminated(tmp_path, kinds, count=2 if kinds == "two" else 1, seed=len(kinds)))


LOST = """
import os, signal, sys
if os.environ["RANK"] == "1":
    {how}
from stripefold_lab.cli.entry import main
sys.exit(main(["train", "--config", "digits", "--set", "devices=2", "--set", "accelerator=cpu", "--run-dir", "run"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(3)"], ids=["killed", "ended"])
def test_one_that_is_lost_before_all_have_met(tmp_path: Path, how: str) -> None:
    """The launcher ends the others: nobody waits for ``timeout`` seconds, which are ten minutes."""
    (tmp_path / "lost.py").write_text(LOST.format(how=how))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    begun = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=300)
    assert done.returncode != 0
    assert time.monotonic() - begun < 3 * SECONDS
    assert not list(tmp_path.glob("run/*.ckpt"))


@pytest.mark.stress
@pytest.mark.timeout(3000)
def test_a_dozen_terminated_runs(tmp_path: Path) -> None:
    trials = terminated(tmp_path, "two,three,workers,fsdp", count=4, seed=0)
    print([(trial["kind"], trial["behind"], trial["seconds"]) for trial in trials])
    check_terminated(trials)
