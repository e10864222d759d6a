"""The commands under torchrun: two processes share the work, the first one writes and prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.processes_worker import OBSERVE, TRAIN, told
from tests.crew import ROOT, WITH_TESTS, free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", str(free_port()), "-m", "tests.cli.processes_worker", str(folder),
    ]  # fmt: skip
    environment = {"PYTHONPATH": WITH_TESTS, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **environment, "GLOO_SOCKET_IFNAME": "lo"}, cwd=ROOT, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def said(folder: Path, number: int, rank: int) -> tuple[int, str, str]:
    status, _, rest = (folder / f"{number}-{rank}.txt").read_text().partition("\n")
    out, _, errors = rest.partition("\n---\n")
    return int(status), out, errors


def test_another_number_than_started(folder: Path) -> None:
    for rank in range(2):
        status, out, errors = said(folder, 0, rank)
        assert (status, out.strip()) == (2, "")
        assert "torchrun started 2 processes, but devices x nodes is 4 x 1 = 4" in errors


def test_the_first_one_tells(folder: Path) -> None:
    for number, words in ((1, "| trained |"), (2, '"layers"'), (3, "written: baked.safetensors (baked)")):
        first, second = (said(folder, number, rank) for rank in range(2))
        assert (first[0], second[0]) == (0, 0), (first, second)
        assert words in first[1]
        assert second[1:] == ("", "")
    assert (folder / "baked.safetensors").exists()


def test_observed_as_by_one_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    status, out, _ = told(OBSERVE)
    assert status == 0
    shared, alone = json.loads(said(folder, 2, 0)[1]), json.loads(out)
    assert shared["images"] == alone["images"] == 33
    for layer, other in zip(shared["layers"], alone["layers"], strict=True):
        # Float32 networks: the size of a batch shows in the last bits of what they compute.
        assert layer["mean"] == pytest.approx(other["mean"], rel=1e-5)
        assert layer["m2"] == pytest.approx(other["m2"], rel=1e-3, abs=1e-9)
    # The control: other images show, in gates that are not dead.
    fewer = json.loads(told(OBSERVE.replace("33", "20"))[1])
    pairs = zip(fewer["layers"], alone["layers"], strict=True)
    assert any(layer["mean"] != pytest.approx(other["mean"], rel=1e-5) for layer, other in pairs)


LEAVING = """
import atexit, sys
from stripefold_lab.processes import ALONE, joined, leave, _met

class Kept:
    def __del__(self):
        print("Python went down")

Kept.itself = Kept()
atexit.register(print, "handled")
if sys.argv[1] == "met":
    _met.append(ALONE)
sys.stdout.write("worked ")
leave(3)
"""


@pytest.mark.parametrize(("met", "last"), [("met", ""), ("alone", "Python went down\n")])
def test_one_that_has_met_others_ends_under_no_thread(met: str, last: str) -> None:
    command = [sys.executable, "-c", LEAVING, met]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, f"worked handled\n{last}"), done.stderr


def test_several_processes_are_to_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, errors = told(f"{TRAIN} --devices 2")
    assert status == 2
    assert (
        "this process was started alone: start all 2 of them with `torchrun --nproc-per-node 2 -m stripefold" in errors
    )
    assert not list(tmp_path.iterdir())
