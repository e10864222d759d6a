"""``fold(fuse=True)`` on every timm architecture with re-parameterizable blocks or LayerScale; resumable, in processes.

PYTHONPATH=src python -m tests.zoo.fuse_sweep --jobs 8              # all of them; what has a result is skipped
PYTHONPATH=src python -m tests.zoo.fuse_sweep --only 'repvit*'      # by glob
PYTHONPATH=src python -m tests.zoo.fuse_sweep --shard 0/4           # every fourth, for several machines
PYTHONPATH=src python -m tests.zoo.fuse_sweep --summary             # only write results/FUSE.md

Each process needs about 50 bytes of memory per parameter, so that few of the largest fit side by side: say
--largest 100 --jobs 16 first, then the rest with --jobs 4.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock
from typing import Any

RESULTS = Path(__file__).parent / "results" / "fuse.jsonl"
TIMEOUT = 1800.0
"""Seconds one architecture may take."""
_MARK = "result "


def versions() -> dict[str, str]:
    """Of what the results depend on."""
    import timm
    import torch

    return {"torch": torch.__version__.partition("+")[0], "timm": timm.__version__}


def read() -> dict[str, dict[str, Any]]:
    """Architecture -> its line; a later line replaces an earlier one."""
    if not RESULTS.exists():
        return {}
    return {line["name"]: line for line in map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())}


def run_apart(name: str) -> dict[str, Any]:
    """One architecture in a process of its own, which may crash or run out of memory."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.zoo.fuse_sweep", "--one", name]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, check=False, env=environment, cwd=_root()
        )
    except subprocess.TimeoutExpired:
        return {"name": name, "failure": f"no result after {TIMEOUT:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if lines:
        return dict(json.loads(lines[-1].removeprefix(_MARK)))
    return {"name": name, "failure": f"exit status {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}"}


def _root() -> Path:
    return Path(__file__).parents[2]


def run_here(name: str) -> dict[str, Any]:
    """One architecture in this process."""
    import torch

    from tests.zoo.fuse_check import check_fuse

    torch.set_num_threads(1)
    try:
        return check_fuse(name)
    except Exception as failure:  # every failure is a finding
        return {"name": name, "failure": f"{type(failure).__name__}: {failure}"[:600]}


def sweep(names: list[str], jobs: int) -> None:
    """Run architectures side by side and keep every line as it comes."""
    lock, total, done = Lock(), len(names), 0

    def one(name: str) -> None:
        nonlocal done
        line = run_apart(name) | {"versions": versions()}
        with lock:
            done += 1
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"[{done}/{total}] {name} {line.get('failure') or line['seconds']}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, names))


def settle(order: list[str]) -> None:
    """One line per architecture, in order."""
    lines = read()
    RESULTS.write_text("".join(json.dumps(lines[name]) + "\n" for name in order if name in lines), encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="a glob over names")
    parser.add_argument("--jobs", type=int, default=1, help="architectures at a time, one thread each")
    parser.add_argument("--shard", default="0/1", help="i/n: of the architectures, every n-th from the i-th")
    parser.add_argument("--largest", type=float, default=float("inf"), help="millions of parameters at most")
    parser.add_argument("--fresh", action="store_true", help="run those that have a result, too")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(_MARK + json.dumps(run_here(options.one)))
        return
    from tests.zoo.fuse_subjects import chosen
    from tests.zoo.fuse_summary import write_summary

    subjects = chosen()
    known = {} if options.fresh else {n: x for n, x in read().items() if "failure" not in x}
    index, count = (int(part) for part in options.shard.split("/"))
    names = [
        name
        for name in list(subjects)[index::count]
        if fnmatchcase(name, options.only)
        and name not in known
        and subjects[name]["parameters"] <= 1e6 * options.largest
    ]
    if not options.summary:
        sweep(names, options.jobs)
        settle(list(subjects))
    write_summary(read(), subjects)


if __name__ == "__main__":
    main()
