"""A run that was killed and resumed ends with the bits of a run left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "src"
MOMENTS = (
    "before the first checkpoint",
    "in the middle of an epoch",
    "while the last checkpoint is written",
    "right after it was written",
    "between the best and the last checkpoint",
    "after training, before folding",
)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    script = Path(__file__).with_name("killed_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("killed"))],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_with_the_same_bits(ends: dict[str, dict], moment: str) -> None:
    # Weights and momentum, the deployed file byte for byte, every epoch once in the table, no half-written file.
    assert ends[moment] == ends["left alone"]
    assert len(ends[moment]["rows"]) == 1 + 3


@pytest.mark.slow
def test_the_comparison_can_fail(ends: dict[str, dict]) -> None:
    assert ends["another seed"]["weights"] != ends["left alone"]["weights"]
    assert ends["another seed"]["folded"] != ends["left alone"]["folded"]


KILLS = 100


def interrupted(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    script = Path(__file__).with_name("stress_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(kills), str(seed)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_interrupted(found: dict[str, Any], kills: int) -> None:
    other = found.pop("another seed")
    assert found.keys() == {"0", "1", "2", "4"}
    for said in found.values():
        assert len(said["behind"]) == kills // 4
        # Weights and momentum, the deployed file byte for byte, every epoch once in the table, no half-written file.
        assert all(end == said["alone"] for end in said["ends"])
    # The number of workers shows in nothing, and the comparison can fail.
    assert len({said["alone"]["weights"] for said in found.values()}) == 1
    assert len({json.dumps(said["alone"]["rows"]) for said in found.values()}) == 1
    assert other["weights"] != found["0"]["alone"]["weights"]


@pytest.mark.slow
def test_killed_at_random_with_any_number_of_workers(tmp_path: Path) -> None:
    check_interrupted(interrupted(tmp_path, kills=12, seed=1), kills=12)


@pytest.mark.stress
@pytest.mark.timeout(3000)
def test_a_hundred_kills(tmp_path: Path) -> None:
    found = interrupted(tmp_path, kills=KILLS, seed=0)
    print({workers: said["behind"] for workers, said in found.items() if workers != "another seed"})
    check_interrupted(found, KILLS)
