"""The results as a page: counts, versions, worst figures, and every model that is left out, with the reason."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from typing import Any

from tests.zoo.record import FOLDER

LIBRARIES = ("timm", "torchvision", "transformers")
_HEAD = """# The zoo: what was folded, and how exactly

Written by `python -m tests.zoo.run` (`make zoo`) from the `.jsonl` files beside it: every figure of every model.
Each model: random weights, gates on (`residual`, else `norm`, else `affine`), training steps after which every gate
parameter has had a finite non-zero gradient, one optimiser step, fold, compare with the attached model in eval mode.
Errors are the largest difference over the largest value of the output. Allowed: 1e-10 in float64; in float32 four times
the rounding noise of the model before folding (at least 1e-6). The folded model has the plain backbone's keys, shapes
and dtypes in every case, depends on the image, and differs from the bare backbone (both by at least 100 tolerances).

timm: every architecture of at most 60 million parameters (`timm_list.json` has them all), each in the smallest of a few
image sizes it takes. torchvision: images of mostly 64 to 96 pixels. transformers: small configurations.
"""


def write_summary() -> None:
    """Write results/SUMMARY.md from the result files that are there."""
    parts = [_HEAD]
    for library in LIBRARIES:
        path = FOLDER / f"{library}.jsonl"
        if path.exists():
            lines = {line["name"]: line for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
            parts.append(_section(library, list(lines.values())))
    (FOLDER / "SUMMARY.md").write_text("\n".join(parts), encoding="utf-8")


def _section(library: str, lines: list[dict[str, Any]]) -> str:
    passed = [line for line in lines if line["passed"]]
    excluded = [line for line in lines if "exclusion" in line]
    failed = [line for line in lines if not line["passed"] and "exclusion" not in line]
    versions = {tuple(sorted(line["versions"].items())) for line in lines}
    told = "; ".join(", ".join(f"{name} {version}" for name, version in pairs) for pairs in sorted(versions))
    rows = [
        f"## {library}",
        f"{len(lines)} models ({told}): **{len(passed)} passed**, {len(failed)} failed, {len(excluded)} excluded.",
        "",
        *(_figures(passed) if passed else []),
        *_list("Failed", failed, "failure"),
        *_list("Excluded, and why", excluded, "exclusion"),
    ]
    return "\n".join(rows) + "\n"


def _figures(passed: list[dict[str, Any]]) -> list[str]:
    where = Counter(line["where"] for line in passed)
    ratio = [{"name": line["name"], "ratio": line["error32"] / max(line["noise32"], 2.5e-7)} for line in passed]
    seconds = [line["seconds"] for line in passed]
    return [
        "| | |",
        "|---|---|",
        f"| where | {', '.join(f'{name} {count}' for name, count in where.most_common())} |",
        f"| sites | {sum(line['sites'] for line in passed)} in all, {_range([line['sites'] for line in passed])} |",
        f"| parameters | {_range([line['params'] for line in passed])} |",
        f"| float64 error, worst | {_worst(passed, 'error64')} |",
        f"| float32 error over the model's own noise, worst (allowed: 4) | {_worst(ratio, 'ratio')} |",
        f"| image dependence, least | {_worst(passed, 'image_dependence', least=True)} |",
        f"| difference to the backbone without gates, least | {_worst(passed, 'control', least=True)} |",
        f"| training steps needed | {dict(sorted(Counter(line['steps'] for line in passed).items()))} |",
        f"| prepared with smaller weights, because rounding grew too much | {_halved(passed)} |",
        f"| seconds, median and sum | {statistics.median(seconds):.1f}, {sum(seconds):.0f} |",
        f"| slowest | {_worst(passed, 'seconds')} |",
        "",
    ]


def _halved(passed: list[dict[str, Any]]) -> str:
    names = [f"`{line['name']}`" for line in passed if line["gain"] != 1.0]
    return ", ".join(names) or "none"


def _range(values: list[int]) -> str:
    return f"{min(values):,} to {max(values):,}, median {int(statistics.median(values)):,}"


def _worst(lines: list[dict[str, Any]], key: str, *, least: bool = False) -> str:
    ordered = sorted(lines, key=lambda line: line[key], reverse=not least)[:3]
    return ", ".join(f"{line[key]:.3g} (`{line['name']}`)" for line in ordered)


def _list(title: str, lines: list[dict[str, Any]], key: str) -> list[str]:
    if not lines:
        return []
    return [f"### {title}", *(f"- `{line['name']}`: {' '.join(line[key].split())[:400]}" for line in lines), ""]
