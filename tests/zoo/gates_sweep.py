"""The sweep over the channel gates of timm: every architecture, expected against found; resumable, in processes.

python -m tests.zoo.gates_sweep --jobs 2               # architectures that have a line of these versions are skipped
python -m tests.zoo.gates_sweep --only 'seresnet*'     # by glob
python -m tests.zoo.gates_sweep --part 0/4             # every fourth architecture, for several machines

Needs timm and stripefold on the path. Writes results/gates.jsonl, one line per architecture, and results/GATES.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.zoo.gates_summary import read_lines, write_gates_summary

FOLDER = Path(__file__).parent / "results"
_REST = 60
"""Architectures after which a process is replaced, so that what libraries keep does not add up."""
_TIMEOUT = 600


def versions() -> dict[str, str]:
    import timm
    import torch

    import stripefold

    return {"stripefold": stripefold.__version__, "torch": torch.__version__, "timm": timm.__version__}


def all_names() -> list[str]:
    """Every architecture; those known to be above the limit of parameters are left out at once."""
    import timm

    from tests.zoo import models_timm

    counted = json.loads(models_timm.LIST_FILE.read_text(encoding="utf-8")) if models_timm.LIST_FILE.exists() else {}
    return models_timm.names() if counted.get("timm") == timm.__version__ else timm.list_models()


def work(tasks: Any, results: Any) -> None:
    """A process: check what comes, tell what is going on, end when None comes."""
    import torch

    from tests.zoo.gates_check import check_gates

    torch.set_num_threads(1)
    while (name := tasks.recv()) is not None:
        results.send(check_gates(name))
        gc.collect()


class Worker:
    """One process at a time; another takes its place when it hangs, dies, or has done enough."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._done = 0
        self.name: str | None = None
        self.started = 0.0

    def begin(self, name: str) -> None:
        """Hand a name over."""
        if self._process is None or self._done >= _REST:
            self.end()
            self.connection, other = self._context.Pipe()
            self._process = self._context.Process(target=work, args=(other, other), daemon=True)
            self._process.start()
            other.close()
            self._done = 0
        self.name, self.started = name, time.perf_counter()
        self._done += 1
        self.connection.send(name)

    def result(self) -> tuple[bool, dict[str, Any] | None]:
        """Whether it is done, and the line; a crash or a timeout is a line as well."""
        failure = ""
        try:
            if self.connection.poll(0):
                return True, self.connection.recv()
        except (EOFError, OSError):
            failure = "the process died (out of memory, or a crash in native code)"
        if time.perf_counter() - self.started > _TIMEOUT:
            failure = f"no result after {_TIMEOUT} s"
        if not failure:
            return False, None
        self.end()
        return True, {"name": self.name, "failure": failure}

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def sweep(names: list[str], jobs: int, path: Path) -> None:
    """Run all names and append their lines as they come."""
    own = versions()
    waiting, workers, done = list(reversed(names)), [Worker() for _ in range(max(1, min(jobs, len(names))))], 0
    try:
        while waiting or any(worker.name for worker in workers):
            for worker in workers:
                if worker.name is None and waiting:
                    worker.begin(waiting.pop())
                if worker.name is None:
                    continue
                ready, line = worker.result()
                if ready:
                    done += 1
                    if line is not None:
                        keep(path, {**line, "versions": own})
                    print(f"{done}/{len(names)} {said(worker.name, line)}", file=sys.stderr)
                    worker.name = None
            time.sleep(0.02)
    finally:
        for worker in workers:
            worker.end()


def keep(path: Path, line: dict[str, Any]) -> None:
    """Append one line in one write, so that parts on one disk do not mix."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def said(name: str, line: dict[str, Any] | None) -> str:
    """A word about one architecture."""
    if line is None:
        return f"{name}: above the limit of parameters"
    if "failure" in line:
        return f"{name}: {line['failure'][:120]}"
    return f"{name}: {sum(line['found'].values())} of {sum(line['expected'].values())}"


def main(arguments: list[str] | None = None) -> int:
    """0 where every architecture has the gates it should have, or a reason is on file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--part", default="0/1", help="i/n: every n-th architecture, from the i-th")
    parser.add_argument("--only", default="*", help="glob")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of gates.jsonl and GATES.md")
    options = parser.parse_args(arguments)
    options.out.mkdir(exist_ok=True, parents=True)
    path = options.out / "gates.jsonl"
    if options.fresh:
        path.unlink(missing_ok=True)
    own = versions()
    have = {line["name"] for line in read_lines(path) if line["versions"] == own and "failure" not in line}
    part, parts = (int(number) for number in options.part.split("/"))
    names = [name for name in all_names() if fnmatchcase(name, options.only)][part::parts]
    sweep([name for name in names if name not in have], options.jobs, path)
    return write_gates_summary(options.out)


if __name__ == "__main__":
    sys.exit(main())
