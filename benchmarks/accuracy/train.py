"""Train what the plan asks for and is not there yet; go on where it was stopped.

    python -m benchmarks.accuracy.train --data FOLDER_OR_TAR --work WORK             # on a CPU: one run after the other
    python -m benchmarks.accuracy.train --data FOLDER_OR_TAR --work WORK --abreast 48 --seconds 780    # on a GPU

Start it as often as there are cores to give; each process takes the first run that no other one holds. It may be killed
at any moment (`kill -9`, too): a run goes on from its last epoch, whoever takes it, and ends with the numbers of a run
that was left alone. States lie in WORK, finished runs as one JSON each in `--results`.

A plain loop of its own, and not `stripefold train`, for two reasons: images are decoded once and augmented an epoch at
a time (0.3 ms an image saved), and on a GPU many small networks train abreast, each as a CUDA graph. Networks, gates,
noise, folding and the schedule are the product's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import stripefold as sf
from benchmarks.accuracy.plan import RESULTS, RunSpec, list_runs, load_plan
from benchmarks.accuracy.run import Pools, Run, epoch_of
from benchmarks.cifar_data import Cifar, load_cifar
from stripefold_lab.bench.environment import describe_environment

ROOT = Path(__file__).parents[2]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder or tar file: train/CLASS/*, test/CLASS/*")
    parser.add_argument("--work", type=Path, required=True, help="where runs keep their state")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where finished runs are written")
    parser.add_argument("--studies", help="only these, with commas between")
    parser.add_argument("--seeds", help="only these, with commas between")
    parser.add_argument("--abreast", type=int, default=1, help="runs trained side by side")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing that would end later")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-graph", action="store_true", help="launch every kernel from Python")
    parser.add_argument("--limit", type=int, help="so many images only: does it run?")
    return parser.parse_args(arguments)


class Worker:
    """Takes runs of the plan, one group after the other, until none is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.begin = time.perf_counter()
        self.session = describe_session(self.device)
        self.data: Cifar = load_cifar(options.data, validation=0, limit=options.limit).to(self.device)
        self.pools = Pools(self.data)
        self.rate = 0.0
        """seconds of one run's epoch, of the last group"""
        self.failed: dict[str, str] = {}
        """run -> why it cannot go on here; it is left alone"""

    def work(self) -> dict[str, str]:
        """Until the plan is done or the time is over; returns the runs that failed, with the reason."""
        while True:
            with ExitStack() as locks:
                group = self._take(locks)
                if not group:
                    break
                self._try(group)
        self._say("nothing left to begin")
        return self.failed

    def _try(self, group: list[RunSpec]) -> None:
        """One run that fails does not take the rest of the plan with it."""
        try:
            self._train(group)
        except Exception as error:
            traceback.print_exc()
            for spec in group:
                self.failed[spec.name] = f"{type(error).__name__}: {error}"
                self._say(f"{spec.name}: failed, {self.failed[spec.name]}")

    def _take(self, locks: ExitStack) -> list[RunSpec]:
        """The first runs that are not finished and not held: alike in length, so that they can go abreast."""
        taken: list[RunSpec] = []
        first: object = None
        for spec in self._wanted():
            if len(taken) == self.options.abreast:
                break
            key = self._key(spec) if self.options.abreast > 1 else None
            if (taken and key != first) or self._late(spec, len(taken) + 1):
                continue
            lock = FileLock(self._state(spec).with_suffix(".lock"))
            self._state(spec).parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            if self._finished(spec):  # by another process, a moment ago
                lock.release()
                continue
            locks.callback(lock.release)
            first = key if not taken else first
            taken.append(spec)
        return taken

    def _wanted(self) -> list[RunSpec]:
        studies, seeds = self.options.studies, self.options.seeds
        runs = list_runs(load_plan(), gpu=self.device.type == "cuda" or studies is not None)
        return [
            run
            for run in runs
            if not self._finished(run)
            and run.name not in self.failed
            and (studies is None or run.study in studies.split(","))
            and (seeds is None or str(run.seed) in seeds.split(","))
        ]

    def _key(self, spec: RunSpec) -> tuple[int, int, str]:
        """Runs go abreast that are at the same epoch of as many, of networks of one size."""
        state = self._state(spec)
        behind = (
            len(torch.load(state, map_location="cpu", weights_only=True)["history"]["test_accuracy"])
            if state.exists()
            else 0
        )
        return spec.epochs, behind, str(spec.options["model"])

    def _late(self, spec: RunSpec, abreast: int) -> bool:
        left = self.options.seconds - (time.perf_counter() - self.begin)
        return left < self.rate * spec.epochs * abreast or left <= 0

    def _train(self, group: list[RunSpec]) -> None:
        graph = self.device.type == "cuda" and not self.options.no_graph
        runs = [Run(spec, self.data, self._state(spec), graph=graph) for spec in group]
        for run in runs:
            run.begin(self.session)
        while runs[0].epoch < runs[0].spec.epochs:
            start = time.perf_counter()
            for _ in epoch_of(runs, self.pools):
                pass
            self.rate = (time.perf_counter() - start) / len(runs)
            first = runs[0]
            self._say(
                f"{first.spec.name} and {len(runs) - 1} more, epoch {first.epoch}/{first.spec.epochs}: "
                f"{self.rate:.1f} s a run, loss {first.history['train_loss'][-1]:.3f}, "
                f"test {first.history['test_accuracy'][-1]:.2f}"
            )
        self.pools.clear()
        for run in runs:
            record = run.finish(self.options.results)
            self._say(f"{run.spec.name}: {record['trained']:.2f}, folded {record.get('folded', 'nothing')}")

    def _state(self, spec: RunSpec) -> Path:
        return Path(self.options.work) / f"{spec.name}.pt"

    def _finished(self, spec: RunSpec) -> bool:
        return (self.options.results / f"{spec.name}.json").exists()

    def _say(self, words: str) -> None:
        print(f"[{time.perf_counter() - self.begin:7.0f} s] {words}", flush=True)


def describe_session(device: torch.device) -> dict[str, Any]:
    """Who trains: commit, device, versions; plain values, as a state and a raw file hold them."""
    # Through JSON: torch.__version__ is of a type of its own.
    return json.loads(json.dumps({**commit(), **describe_environment(device)}))  # type: ignore[no-any-return]


def commit() -> dict[str, Any]:
    """The commit that runs, and whether files that it knows were changed."""
    here = Path(sf.__file__).resolve()
    if ROOT.resolve() not in here.parents:
        raise SystemExit(f"stripefold is imported from {here}, not from {ROOT}: set PYTHONPATH={ROOT}/src")
    try:
        revision = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks/*.py", "*.yaml")
    except (OSError, subprocess.CalledProcessError):
        # A copy without its history says in a file what it is a copy of.
        note = ROOT / "COMMIT"
        revision, changed = (note.read_text(encoding="utf-8").strip() if note.exists() else "unknown"), ""
    return {"commit": revision, "changed": bool(changed)}


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.deterministic = True
    return 1 if Worker(options).work() else 0


if __name__ == "__main__":
    sys.exit(main())
