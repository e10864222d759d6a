"""Public code bases run whole: attach, fold, fuse, observe, bake, each judged by plain runs of the model itself.

    pip install --no-deps segmentation-models-pytorch monai ultralytics speechbrain efficientnet-pytorch \
        torchreid effdet peft
    python -m tests.zoo.codebases                    # what is installed; what has a result is skipped
    python -m tests.zoo.codebases --only monai --again

Best in an environment of its own, beside the one that has torch. Writes results/codebases.jsonl, one line per model,
and results/CODEBASES.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import re
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tests.zoo.codebases_check import check
from tests.zoo.codebases_models import Model, models

FOLDER = Path(__file__).parent / "results"
RESULTS, TABLE = FOLDER / "codebases.jsonl", FOLDER / "CODEBASES.md"
COUNTS = (
    "sites", "gates_folded", "fused", "fuse_left", "gates", "gates_checked", "others", "baked", "baked_checked", "kept",
)  # fmt: skip


def main() -> None:
    """Run what has no result yet, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", default=[], help="packages, or names of models")
    parser.add_argument("--again", action="store_true", help="also what has a result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = {(line["package"], line["name"]): line for line in _read()}
    for model in models():
        key = (model.package, model.name)
        wanted = not options.only or model.package in options.only or model.name in options.only
        if wanted and (options.again or key not in lines):
            lines[key] = _line(model)
            print(json.dumps(lines[key])[:600], flush=True)
            RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines.values()), encoding="utf-8")
    TABLE.write_text(table(list(lines.values())), encoding="utf-8")


def _line(model: Model) -> dict[str, Any]:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            version = importlib.metadata.version(model.package)
            line = dataclasses.asdict(check(model))
        except Exception as failure:
            told = f"{type(failure).__name__}: {failure}"[:300]
            return {"package": model.package, "name": model.name, "failure": told}
    return line | {"version": version, "seconds": round(time.perf_counter() - start, 1)}


def _read() -> list[dict[str, Any]]:
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def table(lines: list[dict[str, Any]]) -> str:
    """Counts by package, then every model, then every reason."""
    run = [line for line in lines if "failure" not in line]
    version = torch.__version__.split("+")[0]
    text = [
        "# Public code bases",
        "",
        f"Written by `python -m tests.zoo.codebases` (torch {version}). Random weights, float64, two",
        "inputs. The truth is never stripefold's own: the bare model under hooks that multiply by the paper's formula,",
        "or that hold each factor (output over input of its module) at its mean. *error*: the largest difference to it",
        "over the largest output, the worst of all calls; *control*: how much the gates change the output.",
        "",
        "| package | models | " + _heads() + " | refused | faults | error |",
        "|---|---|" + "---|" * (len(COUNTS) + 3),
    ]
    for package in dict.fromkeys(line["package"] for line in run):
        rows = [line for line in run if line["package"] == package]
        sums = " | ".join(str(sum(row[name] for row in rows)) for name in COUNTS)
        refused, faults = (sum(len(row[kind]) for row in rows) for kind in ("refused", "faults"))
        worst = max(row["error"] for row in rows)
        text.append(f"| {package} {rows[0]['version']} | {len(rows)} | {sums} | {refused} | {faults} | {worst:.1e} |")
    text += ["", "| model | " + _heads() + " | error | control |"]
    text += ["|---|" + "---|" * (len(COUNTS) + 2)]
    for line in run:
        counts = " | ".join(str(line[name]) for name in COUNTS)
        text.append(f"| {line['package']} {line['name']} | {counts} | {line['error']:.1e} | {line['control']:.1e} |")
    for title, kind in (("Left by fuse", "why_left"), ("Kept by bake", "why_kept")):
        kept = Counter[str]()
        for line in run:
            for reason, count in line.get(kind, {}).items():
                kept[re.sub(r"\b\w+(\.\w+)+\b", "...", reason)] += count
        text += ["", f"## {title}", "", *(f"- {count} x {reason}" for reason, count in kept.most_common())]
    for title, kind in (("Refused", "refused"), ("Faults", "faults")):
        reasons = Counter(reason for line in run for reason in line[kind])
        text += ["", f"## {title}", "", *(f"- {count} x {reason}" for reason, count in reasons.most_common())]
    failed = [f"- {line['package']} {line['name']}: {line['failure']}" for line in lines if "failure" in line]
    return "\n".join([*text, *(["", "## Not run", "", *failed] if failed else [])]) + "\n"


def _heads() -> str:
    return " | ".join(name.replace("_", " ") for name in COUNTS)


if __name__ == "__main__":
    main()
