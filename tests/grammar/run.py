"""Many networks, and a table of what became of them: ``python -m tests.grammar.run --count 2000``."""

from __future__ import annotations

import argparse
import random
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from tests.grammar.calls import CHECKS
from tests.grammar.check import FAULTS, Finding, Subject, faults
from tests.grammar.network import network

RESULT = Path(__file__).parent / "RESULTS.md"


def findings_of(seed: int, checks: Sequence[str] = tuple(CHECKS), wanted: Sequence[str] = ()) -> list[Finding]:
    """What the public calls did with the network of a seed."""
    subject = Subject.of(network(seed, wanted))
    for name in checks:
        before = torch.get_rng_state()
        CHECKS[name](subject)
        torch.set_rng_state(before)
    return subject.findings


def chosen(seed: int, share: int = 4) -> list[str]:
    """A few of the checks for the network of a seed: over many networks each check gets its part."""
    return sorted(random.Random(f"checks {seed}").sample(list(CHECKS), share))


def main() -> None:
    """Run the networks, print every fault, write the table if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=60, help="how many networks")
    parser.add_argument("--only", nargs="+", default=[], choices=list(CHECKS), help="these, in place of four drawn")
    parser.add_argument("--all", action="store_true", help="every call on every network")
    parser.add_argument("--pieces", nargs="+", default=[], help="networks of these pieces only")
    parser.add_argument("--show", action="store_true", help="print the source text of every network with a fault")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time, one thread each")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    start = time.perf_counter()
    seeds = range(options.first, options.first + options.count)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), initializer=_one_thread) as workers:
        for index, (found, said) in enumerate(workers.map(partial(_one, options=options), seeds), 1):
            for call, count in found.items():
                counts[call].update(count)
            if said:
                print(said, flush=True)
            if index % 100 == 0:
                print(f"{index} of {len(seeds)} networks, {time.perf_counter() - start:.0f} s", flush=True)
    text = table(counts, options.count, time.perf_counter() - start)
    print(text)
    if options.write:
        RESULT.write_text(text + "\n", encoding="utf-8")


def _one_thread() -> None:
    torch.set_num_threads(1)


def _one(seed: int, options: argparse.Namespace) -> tuple[dict[str, Counter[str]], str]:
    """Counts by call, and the faults in words, of the network of a seed."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    checks = list(CHECKS) if options.all else options.only or chosen(seed)
    try:
        found = findings_of(seed, checks, options.pieces)
    except Exception:
        print(f"seed {seed}: the check itself failed on {network(seed, options.pieces)}\n{traceback.format_exc()}")
        raise
    for finding in found:
        counts[finding.call].update({finding.verdict: 1, "done": finding.done, "left": finding.left})
    steps = " ".join(network(seed, options.pieces).steps)
    said = [f"{seed} {each.verdict} {each.call}: {each.detail} | {steps}" for each in faults(found)]
    if options.show and said:
        said.append(str(network(seed, options.pieces)))
    return counts, "\n".join(said)


def table(counts: dict[str, Counter[str]], networks: int, seconds: float) -> str:
    """Counts by call, as Markdown."""
    columns = ("right", "refused", "unseen", *FAULTS, "done", "left")
    version = torch.__version__.split("+")[0]
    lines = [
        "# Random networks from the grammar",
        "",
        f"Written by `python -m tests.grammar.run --write` (torch {version}): {networks} networks",
        f"in {seconds / 60:.0f} minutes. *done*: layers, gates and blocks attached, folded, seen or baked; *left*:",
        "those left out with a reason. *unseen*: wrong on a way around a layer that one example does not show.",
        "",
        "| call | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for call, count in counts.items():
        lines.append(f"| {call} | " + " | ".join(str(count[column]) for column in columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
