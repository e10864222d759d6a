"""Run the plan, as far as it is not done.

    python -m benchmarks.settle --data FOLDER --work WORK [--setting cifar100-half] [--seeds 0,1,2]

FOLDER holds `cifar10` and `cifar100`, each with `train/CLASS/*` and `test/CLASS/*`. It may be killed at any moment and
started again, also several times at once: each process takes the first run that no other one holds, and a run goes on
from its last checkpoint. One JSON per seed and way is written to `--results`. `chrt -i 0 nice -n 19 python ...` uses
idle time only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from benchmarks.accuracy.train import describe_session
from benchmarks.settle.bases import load_data
from benchmarks.settle.plan import RESULTS, load_plan
from benchmarks.settle.ways import Trial, run_way


def main() -> int:
    """Way by way, each on all seeds: the more telling ways come first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds the folders cifar10 and cifar100")
    parser.add_argument("--work", type=Path, required=True, help="where bases and checkpoints lie")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--setting", default="cifar100-half")
    parser.add_argument("--seeds", help="only these, with commas between")
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting = load_plan()[options.setting]
    data = load_data(options.data, setting, options.work)
    seeds = setting.seeds if options.seeds is None else tuple(map(int, options.seeds.split(",")))
    session = describe_session(torch.device("cpu"))
    for way in setting.ways:
        for seed in seeds:
            path = options.results / setting.name / f"{way}-seed{seed}.json"
            with _held(options.work / setting.name / f"{way}-seed{seed}.lock") as mine:
                if mine and not path.exists():
                    run_way(Trial(setting, seed, data, options.work), way, path, session)
    return 0


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether this process may do it: no other one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


if __name__ == "__main__":
    sys.exit(main())
