"""The sweep: every subject of every library through `check`, resumable, in worker processes that may fail.

python -m tests.zoo.run                           # all libraries; models that passed before are skipped
python -m tests.zoo.run timm --only 'vit_*'       # one library, by glob
python -m tests.zoo.run --fresh                   # forget earlier results
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import threading
import time
from collections import deque
from fnmatch import fnmatchcase
from multiprocessing import get_context
from typing import Any

from tests.zoo.record import Results
from tests.zoo.summary import write_summary
from tests.zoo.worker import serve

LIBRARIES = ("timm", "torchvision", "transformers")
TIMEOUT = 300.0
"""Seconds one model may take before its worker is ended."""
_REST = 150
"""Models after which a worker is replaced, so that what libraries keep does not add up."""


class Worker:
    """One child process; a new one takes its place when it hangs or dies."""

    def __init__(self) -> None:
        self._context = get_context("spawn")
        self._process: Any = None
        self._served = 0

    def run(self, library: str, name: str) -> dict[str, Any]:
        """The line of one model; a crash or a timeout is a line as well."""
        if self._process is None or self._served >= _REST:
            self._start()
        self._served += 1
        self._connection.send((library, name))
        failure = f"no result after {TIMEOUT:.0f} s"
        try:
            if self._connection.poll(TIMEOUT):
                return self._connection.recv()
        except (EOFError, OSError):
            self._process.join(5)
            failure = f"the process ended with code {self._process.exitcode} (out of memory, or a crash in native code)"
        self.stop()
        return {"name": name, "passed": False, "failure": failure}

    def _start(self) -> None:
        self.stop()
        self._connection, other = self._context.Pipe()
        self._process = self._context.Process(target=serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        self._served = 0

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


class Sweep:
    """Hands names to workers and keeps what they return."""

    def __init__(self, results: Results, names: list[str], workers: int) -> None:
        self._results = results
        self._waiting = deque(names)
        self._total = len(names)
        self._workers = workers
        self._done = self._failed = 0
        self._start = time.perf_counter()
        self._lock = threading.Lock()

    def run(self) -> int:
        """Run everything; returns how many failed."""
        threads = [threading.Thread(target=self._serve) for _ in range(min(self._workers, self._total))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self._failed

    def _serve(self) -> None:
        worker = Worker()
        while True:
            with self._lock:
                if not self._waiting:
                    break
                name = self._waiting.popleft()
            line = worker.run(self._results.library, name)
            with self._lock:
                self._keep(line)
        worker.stop()

    def _keep(self, line: dict[str, Any]) -> None:
        self._results.add(line)
        self._done += 1
        self._failed += not line["passed"]
        elapsed = time.perf_counter() - self._start
        remaining = elapsed / self._done * (self._total - self._done)
        verdict = f"{line['seconds']:5.1f} s" if line["passed"] else f"FAILED {line['failure'][:300]}"
        place = (
            f"{self._results.library} {self._done}/{self._total}, {self._failed} failed, {remaining / 60:.0f} min left"
        )
        print(f"[{place}] {line['name']} {verdict}", flush=True)


def sweep(library: str, only: str = "*", *, workers: int = 2, fresh: bool = False) -> Results:
    """Run what has not passed yet with these versions, and write the summary.

    Args:
        library: one of ``LIBRARIES``.
        only: a glob over names.
        workers: processes of one thread each.
        fresh: forget earlier results.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    room = importlib.import_module(f"tests.zoo.models_{library}")
    results = Results(library, fresh=fresh)
    names = room.names()
    results.keep_only(names)
    passed = results.passed()
    Sweep(results, [name for name in names if fnmatchcase(name, only) and name not in passed], workers).run()
    results.settle(names)
    write_summary()
    return results


def main() -> int:
    """The command; its exit status says whether every model passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", choices=[*LIBRARIES, []], help="all when none is named")
    parser.add_argument("--only", default="*", help="a glob over names")
    parser.add_argument("--workers", type=int, default=max(1, min(2, os.cpu_count() or 1)))
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    failed = 0
    for library in options.libraries or LIBRARIES:
        results = sweep(library, options.only, workers=options.workers, fresh=options.fresh)
        failed += len(results.failures())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
