"""Training over several processes (gloo, on the CPU): the truth is one process with the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stripefold.stripe.trajectory import Trajectory
from stripefold_lab.training.checkpoint import read_checkpoint
from tests.crew import free_port

ROOT = Path(__file__).parents[2]
NOISE = 5e-6
"""Relative to a tensor's largest value: a few roundings of float32, from sums taken in another order."""
pytestmark = pytest.mark.slow


def run(part: str, folder: Path) -> dict[str, list[Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.crew_runs", str(folder), part],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {"folder": folder, **json.loads(done.stdout)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("left alone", tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("stopped", tmp_path_factory.mktemp("stopped"))


def numbers(folder: Path) -> dict[str, torch.Tensor]:
    """Everything a run's last checkpoint says: weights, momentum, every epoch's measures."""
    content = read_checkpoint(folder / "run" / "checkpoints" / "last.ckpt")
    found = dict(content["state_dict"])
    optimizer = content["optimizer_states"][0]
    order = [number for group in optimizer["param_groups"] for number in group["params"]]
    for place, number in enumerate(order):
        found[f"momentum {place}"] = optimizer["state"][number]["momentum_buffer"]
    rows = content["callbacks"]["EpochRecord"]["rows"]
    for name in rows[0].keys() - {"seconds"}:
        found[f"row {name}"] = torch.tensor([row[name] for row in rows])
    return found


def difference(one: Path, other: Path) -> float:
    """The largest, relative to the largest value of its tensor."""
    first, second = numbers(one), numbers(other)
    assert first.keys() == second.keys()
    pairs = [(first[name].double(), second[name].double()) for name in first if first[name].numel()]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)


@pytest.mark.parametrize("kind", ["two", "three", "fsdp", "slurm"])
def test_several_processes_train_like_one(alone: dict[str, Any], kind: str) -> None:
    assert all(said == alone["one"][0] for said in alone[kind]), alone[kind]
    assert difference(alone["folder"] / "one", alone["folder"] / kind) < NOISE


def test_only_the_first_one_writes(alone: dict[str, Any]) -> None:
    def files(kind: str) -> set[str]:
        root = alone["folder"] / kind / "run"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    assert files("two") == files("one")
    assert "folded.safetensors" in files("fsdp")


@pytest.mark.parametrize("kind", ["another seed", "wrong parts"])
def test_the_comparison_can_fail(alone: dict[str, Any], kind: str) -> None:
    assert difference(alone["folder"] / "one", alone["folder"] / kind) > 0.1


def test_pixels_are_counted_over_all_processes(alone: dict[str, Any]) -> None:
    assert alone["scenes, two"] == alone["scenes, one"] * 2
    assert difference(alone["folder"] / "scenes, one", alone["folder"] / "scenes, two") < NOISE


def test_boxes_are_measured_over_all_processes(alone: dict[str, Any]) -> None:
    for said in alone["boxes"]:
        assert said["shared"] == said["alone"]
        assert 0 < said["alone"]["map50"] < 1


def test_batchnorm_keeps_each_process_to_its_own_images(alone: dict[str, Any]) -> None:
    """Not the same numbers, on a CPU; but the same file for all, with the mean of their statistics."""
    assert alone["batchnorm, two"][0] == alone["batchnorm, two"][1]
    found, truth = (numbers(alone["folder"] / f"batchnorm, {world}") for world in ("two", "one"))
    assert difference(alone["folder"] / "batchnorm, one", alone["folder"] / "batchnorm, two") > 1e-3
    name = "model.norm.base.running_mean"
    torch.testing.assert_close(found[name], truth[name], rtol=0.2, atol=0.05)


def test_a_run_is_observed_by_the_first_one(alone: dict[str, Any]) -> None:
    found, truth = (
        Trajectory.load(alone["folder"] / kind / "run" / "stripes" / "trajectory.json") for kind in ("two", "one")
    )
    assert found.epochs == truth.epochs == [0, 1, 2]
    assert found.state_dict().keys() == truth.state_dict().keys()


def test_the_bytes_of_a_step_are_those_of_the_page(alone: dict[str, Any]) -> None:
    for said in alone["sent"]:
        assert said["sent"] == said["computed"] > 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch synchronises BatchNorm on GPUs only")
def test_synchronised_batchnorm_is_that_of_one_process(tmp_path: Path) -> None:
    words = (
        "train --config digits --epochs 1 --batch-size 32 --set limit_train=64 --set limit_test=32 "
        "--set accelerator=gpu --set tensorboard=false"
    )
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port"]
    two = [*launcher, str(free_port()), "-m", "stripefold", *words.split(), "--devices", "2"]
    one = ["stripefold", *words.split()]
    for name, command in {"one": one, "two": two}.items():
        (tmp_path / name).mkdir()
        called = [sys.executable, "-m", *command, "--run-dir", "run"]
        subprocess.run(called, cwd=tmp_path / name, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=True)
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-2


def test_a_second_run_in_the_same_processes(alone: dict[str, Any]) -> None:
    assert alone["twice"] == [{"same": True, "left": False}] * 2


def test_parameters_that_a_step_leaves_out(alone: dict[str, Any], stopped: dict[str, Any]) -> None:
    assert [said["passed"] for said in alone["unused"]] == [True, True]
    assert all("a step leaves parameters of the network out" in said for said in stopped["unused"])


@pytest.mark.parametrize("way", ["by two", "fsdp by one", "two by fsdp"])
def test_a_killed_process_ends_the_run_and_it_is_resumed(
    stopped: dict[str, Any], alone: dict[str, Any], way: str
) -> None:
    told, gone = stopped[f"killed, {way}"]
    assert gone == "killed"
    assert told.startswith("TrainingError: another process has ended, or did not answer in time")
    assert told.endswith("go on with `stripefold train --resume --run-dir run` (resume=True)")
    assert all(said["epochs"] == 1 for said in stopped[way])
    assert difference(alone["folder"] / "one", stopped["folder"] / way) < NOISE


def test_a_silent_process_is_not_waited_for_without_end(stopped: dict[str, Any]) -> None:
    told, silent = stopped["silent"]
    assert silent == "hung"
    assert "Timed out waiting 3000ms" in told
    assert told.endswith("no epoch was finished")


REFUSED = {
    "more than started": "ConfigError: torchrun started 2 processes, but devices x nodes is 3 x 1 = 3",
    "fewer than started": "ConfigError: torchrun started 2 processes, but devices x nodes is 1 x 1 = 1",
    "more than images": "ConfigError: 2 processes are to share 1 images",
    "sync_batchnorm": "ConfigError: sync_batchnorm is True, and torch synchronises BatchNorm on GPUs only",
    "fsdp in half precision": "ConfigError: accelerator 'cpu' with precision 16-mixed on 2 devices cannot be used here",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_on_every_process(stopped: dict[str, Any], kind: str) -> None:
    assert all(said.startswith(REFUSED[kind]) for said in stopped[kind]), stopped[kind]


def test_all_hear_of_what_one_has_met(stopped: dict[str, Any]) -> None:
    first, second = stopped["occupied"]
    assert first.endswith("is not empty and holds no run; choose another")
    assert second.startswith("ConfigError: process 0 failed, so all of them stop: ConfigError: run_dir")
    first, second = stopped["no data on one"]
    assert (first, second) == (
        "DataError: process 1 failed, so all of them stop: DataError: no folder /data",
        "DataError: no folder /data",
    )
