"""Baking of every timm architecture with channel gates: folded against held constants, in float64; resumable.

PYTHONPATH=src python -m tests.zoo.bake_sweep --jobs 8              # all of them; what has a result is skipped
PYTHONPATH=src python -m tests.zoo.bake_sweep --only 'seresnet*'    # by glob
PYTHONPATH=src python -m tests.zoo.bake_sweep --shard 0/4           # every fourth, for several machines
PYTHONPATH=src python -m tests.zoo.bake_sweep --summary             # only write results/BAKE.md

Each architecture gets random weights and statistics and random constants of both signs where the plan allows it. Writes
results/bake.jsonl, one line per architecture, and results/BAKE.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock
from typing import Any

FOLDER = Path(__file__).parent / "results"
RESULTS, TABLE = FOLDER / "bake.jsonl", FOLDER / "BAKE.md"
TIMEOUT = 1200.0
"""Seconds one process may take."""
_TOGETHER = 8
"""Architectures that one process does, because loading the libraries takes as long as a small one of them."""
_MARK = "result "
_HOWS = ("backward", "forward", "multiply", "keep")


def check(name: str) -> dict[str, Any]:
    """Bake one architecture; without gates, that is all the line says."""
    import timm

    from stripefold.stripe.discover import discover
    from tests.baking.exact import bake_exactly, prepare
    from tests.lifecycle import EXACT
    from tests.zoo.models_timm import subjects
    from tests.zoo.subject import images, quick_creation

    start = time.perf_counter()
    failures = []
    for subject in subjects(name):
        try:
            with quick_creation():
                model = subject.build()
            shape = subject.inputs(1).shape
            if not discover(model.eval(), subject.inputs(1)).gates:
                return {"name": name, "gates": 0}
            model, x = prepare(model, images(1, *shape[1:], batch=4).double())
            outcome = bake_exactly(model, x)
        except Exception as failure:  # too small an image, most of the time: the next size decides
            failures.append(f"{type(failure).__name__}: {failure}"[:400])
            continue
        reasons = Counter(
            f"{site.how}: {_without_names(site.why)}" for site in outcome.sites if site.how in ("multiply", "keep")
        )
        baked = any(site.how != "keep" for site in outcome.sites)
        line = {
            "name": name,
            "timm": timm.__version__,
            "size": list(shape[2:]),
            "gates": len(outcome.sites),
            "how": {how: sum(site.how == how for site in outcome.sites) for how in _HOWS},
            "still_computed": sum(site.how != "keep" and site.spare.costly for site in outcome.sites),
            "error": outcome.error,
            "against_dynamic": outcome.against_dynamic,
            "against_ones": outcome.against_ones,
            "dependence": outcome.dependence,
            "reasons": dict(reasons),
            "seconds": round(time.perf_counter() - start, 1),
        }
        if outcome.error > EXACT or (baked and min(outcome.against_dynamic, outcome.against_ones) < 100 * EXACT):
            line["failure"] = "not exact, or the controls do not differ"
        return line
    return {"name": name, "failure": failures[-1] if failures else "no size to try"}


def _without_names(why: str) -> str:
    """A reason without the paths in it, so that like reasons count together."""
    return re.sub(r"'[\w.]*\.[\w.]*'", "'...'", why)


def gated() -> list[str]:
    """Architectures with gates, smallest first, as far as the sweep over gates has found out; else all of them."""
    from tests.zoo.gates_summary import read_lines
    from tests.zoo.models_timm import names

    path = FOLDER / "gates.jsonl"
    without = {line["name"] for line in read_lines(path) if line.get("found") == {}} if path.exists() else set()
    return [name for name in names() if name not in without]


def read() -> dict[str, dict[str, Any]]:
    """Architecture -> its line; a later line replaces an earlier one."""
    if not RESULTS.exists():
        return {}
    return {line["name"]: line for line in map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())}


def run_apart(names: list[str]) -> list[dict[str, Any]]:
    """Some architectures in a process of their own, which may crash or run out of memory; then the rest in another."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-m", "tests.zoo.bake_sweep", "--here", *names]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=TIMEOUT, check=False, text=True,
            env=environment, cwd=FOLDER.parents[2],
        )  # fmt: skip
        output, failure = (
            done.stdout,
            f"exit status {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}",
        )
    except subprocess.TimeoutExpired as expired:
        output, failure = (expired.stdout or b"").decode(), f"no result after {TIMEOUT:.0f} s"
    lines = [json.loads(x.removeprefix(_MARK)) for x in output.splitlines() if x.startswith(_MARK)]
    if len(lines) == len(names):
        return lines
    lines.append({"name": names[len(lines)], "failure": failure})
    rest = names[len(lines) :]
    return [*lines, *(run_apart(rest) if rest else [])]


def sweep(names: list[str], jobs: int) -> None:
    """Run architectures side by side and keep every line as it comes."""
    lock, done = Lock(), 0

    def some(chosen: list[str]) -> None:
        nonlocal done
        lines = run_apart(chosen)
        with lock:
            with RESULTS.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            for line in lines:
                done += 1
                said = line.get("failure") or line.get("how") or "no gates"
                print(f"[{done}/{len(names)}] {line['name']} {said}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(some, [names[k : k + _TOGETHER] for k in range(0, len(names), _TOGETHER)]))


def settle() -> None:
    """One line per architecture, by name."""
    lines = read()
    RESULTS.write_text("".join(json.dumps(lines[name]) + "\n" for name in sorted(lines)), encoding="utf-8")


def write_table() -> None:
    """What became of the gates, over all architectures that have a line."""
    lines = [line for line in read().values() if line.get("gates") or "failure" in line]
    baked = [line for line in lines if "how" in line]
    totals = {how: sum(line["how"][how] for line in baked) for how in _HOWS}
    still = sum(line["still_computed"] for line in baked)
    free = sum(line["how"]["keep"] == 0 and not line["still_computed"] for line in baked)
    wasted = sum(line["still_computed"] > 0 for line in baked)
    reasons = Counter[str]()
    for line in baked:
        reasons.update(line["reasons"])
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm"))
    text = [
        "# Baking of timm's architectures", "",
        f"Written by `python -m tests.zoo.bake_sweep` ({versions}). Random weights, random constants of both signs",
        "where the plan allows it, float64; *error* is the largest difference to the network whose gates are held",
        "constant by hooks, over the largest output.", "",
        f"{len(baked)} architectures with {sum(totals.values())} gates: "
        + ", ".join(f"{count} {how}" for how, count in totals.items())
        + f"; largest error {max((line['error'] for line in baked), default=0):.1e}; "
        f"{sum('failure' in line for line in lines)} failures.",
        f"What computed {sum(totals.values()) - totals['keep'] - still} of them is gone; {still} are constant, still",
        "computed (some operation reads a map for a gate that nothing needs).",
        f"Of the architectures, {free} are free of dynamic gates and what computed them; {wasted} still compute some",
        f"of it for nothing; the other {len(baked) - free - wasted} keep gates that cannot be constants.", "",
        "| reason why a gate is not folded | gates |", "|---|---|",
        *(f"| {reason} | {count} |" for reason, count in reasons.most_common()), "",
        "| architecture | gates | backward | forward | multiply | keep | error |", "|---|---|---|---|---|---|---|",
        *(
            f"| {line['name']} | {line['gates']} | "
            + " | ".join(str(line["how"][how]) for how in _HOWS)
            + f" | {line['error']:.1e} |"
            for line in sorted(baked, key=lambda line: line["name"])
        ),
        *(f"\n{line['name']}: {line['failure']}" for line in lines if "failure" in line),
    ]  # fmt: skip
    TABLE.write_text("\n".join(text) + "\n", encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="a glob over names; several by commas")
    parser.add_argument("--jobs", type=int, default=1, help="architectures at a time, one thread each")
    parser.add_argument("--shard", default="0/1", help="i/n: of the architectures, every n-th from the i-th")
    parser.add_argument("--fresh", action="store_true", help="run those that have a result, too")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    parser.add_argument("--here", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        import torch

        torch.set_num_threads(1)
        for name in options.here:
            print(_MARK + json.dumps(check(name)), flush=True)
        return
    # A line of before "still_computed" was counted says too little.
    told = {name for name, line in read().items() if "still_computed" in line or line.get("gates") == 0}
    known = set() if options.fresh else {name for name in told if "failure" not in read()[name]}
    index, count = (int(part) for part in options.shard.split("/"))
    globs = options.only.split(",")
    names = [name for name in gated() if any(fnmatchcase(name, glob) for glob in globs)]
    if not options.summary:
        sweep([name for name in names[index::count] if name not in known], options.jobs)
        settle()
    write_table()


if __name__ == "__main__":
    main()
