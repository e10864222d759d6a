"""A run that was killed and resumed ends with the bits of a run left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
