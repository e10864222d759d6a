"""Trace timm architectures on the meta device and say where no residual branch is found, and why.

python tests/zoo/sweep_trace.py --sample 80        # one architecture per family, at most 80 of them
python tests/zoo/sweep_trace.py --out trace.jsonl  # all; resumable, one line each
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from stripefold.graph.trace import trace
from tests.graph.affine import is_affine


def architectures(sample: int, seed: int) -> list[str]:
    """All architectures of timm, or a random one of each of ``sample`` random families."""
    if not sample:
        return timm.list_models()
    random.seed(seed)
    families = sorted(timm.list_modules())
    chosen = random.sample(families, min(sample, len(families)))
    return [random.choice(timm.list_models(module=family)) for family in chosen if timm.list_models(module=family)]


def build(name: str) -> nn.Module:
    """The model without weights where timm can build it so, else with."""
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except (RuntimeError, NotImplementedError):
        return timm.create_model(name)


def sweep_one(name: str) -> dict[str, Any]:
    """One line of the result."""
    model = build(name)
    parameters = sum(p.numel() for p in model.parameters())
    start = time.perf_counter()
    line: dict[str, Any] = {"name": name, "family": type(model).__module__, "parameters": parameters}
    example = torch.empty(2, *model.default_cfg["input_size"])
    try:
        result = trace(model, example, is_layer=is_affine)
        tails = result.residual_tails()
        line |= {"tails": len(tails), "without": result.branches_without_tail(), "uncalled": list(result.uncalled)}
        line |= {"values": len(result.graph.nodes), "on_meta": result.on_meta}
    except Exception as error:  # every failure is a finding
        line["error"] = f"{type(error).__name__}: {error}"
    return line | {"seconds": round(time.perf_counter() - start, 3)}


def report(lines: list[dict[str, Any]]) -> None:
    """Print the summary: errors, architectures without a branch, branches without a tail, the slowest."""
    done = [line for line in lines if "error" not in line]
    found = [line for line in done if line["tails"]]
    print(f"{len(lines)} architectures, {len(done)} traced, {len(found)} with residual branches")
    for line in lines:
        if "error" in line:
            print("  error", line["name"], line["error"])
    print("no branch:", ", ".join(line["name"] for line in done if not line["tails"]))
    for line in done:
        if line["without"]:
            print("  without a tail", line["name"], len(line["without"]), line["without"][0])
    for line in sorted(lines, key=lambda line: -line["seconds"])[:5]:
        print("  slowest", line["name"], line["seconds"], "s")


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kept = options.out.read_text().splitlines() if options.out and options.out.exists() else []
    lines = [json.loads(line) for line in kept]
    known = {line["name"] for line in lines}
    for name in options.names or architectures(options.sample, options.seed):
        if name not in known:
            lines.append(sweep_one(name))
            gc.collect()
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    report(lines)


if __name__ == "__main__":
    main()
