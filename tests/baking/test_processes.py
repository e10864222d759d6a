"""Two processes (gloo) that bake together, each with its own batches, against one process with all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import stripefold as sf
from stripefold.errors import BakeError
from tests.baking.crew_bakes import KINDS, WORLD, baked, data, gated, told

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bakes")
    done = subprocess.run(
        [sys.executable, "-m", "tests.baking.crew_bakes", str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"},
        cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {"folder": folder, **json.loads(done.stdout)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["budget", "statistics", "own metric"])
def test_all_bake_what_one_process_bakes(said: dict[str, Any], kind: str) -> None:
    model, report = baked(kind, data(), KINDS[kind](0), None)
    expected = json.loads(json.dumps(told(report)))
    states = [torch.load(said["folder"] / kind / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    for rank, state in enumerate(states):
        assert said[kind][rank] == expected
        for name, tensor in model.state_dict().items():
            assert torch.equal(state[name], states[0][name])
            torch.testing.assert_close(state[name], tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_the_comparison_can_fail(said: dict[str, Any]) -> None:
    """A process with its own batches only decides by other figures, and bakes other constants."""
    options = KINDS["budget"](0)
    model, report = baked("budget", data()[:2], options, None)
    assert json.loads(json.dumps(told(report)))["rows"] != said["budget"][0]["rows"]
    state = torch.load(said["folder"] / "budget" / "0.pt", weights_only=True)
    assert max(float((state[name] - tensor).abs().max()) for name, tensor in model.state_dict().items()) > 1e-4


@pytest.mark.slow
def test_a_budget_decides(said: dict[str, Any]) -> None:
    assert {row[1] for row in said["budget"][0]["rows"]} == {"folded", "dynamic"}


@pytest.mark.slow
def test_all_hear_of_one_that_failed(said: dict[str, Any]) -> None:
    first, second = said["nothing for one"]
    assert first.startswith("BakeError: process 1 failed, so all of them stop: BakeError: data holds no batch")
    assert second.startswith("BakeError: data holds no batch")


@pytest.mark.slow
def test_finetuning_is_for_one_process(said: dict[str, Any]) -> None:
    assert said["finetune"] == ["BakeError: finetune trains in one process: leave out process_group, or finetune"] * 2


def test_a_group_needs_processes() -> None:
    with pytest.raises(BakeError, match="process_group is given, but torch.distributed is not initialised"):
        sf.bake(gated(), data(), process_group=object())
