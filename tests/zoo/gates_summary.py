"""results/GATES.md from results/gates.jsonl: expected, found and recorded, and every shortfall with its reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

REASONS = Path(__file__).parent / "gates_reasons.json"
_HEAD = """# The channel gates of timm: found / expected

Written by `python -m tests.zoo.gates_sweep` from `gates.jsonl`. Every architecture of timm of at most 60 million
parameters. *Expected*: counted from the architecture's own modules by their classes (`gates_expected.py`, made by
reading timm's source). *Found*: by `discover`, which knows no class names, on a trace without weights. *Recorded*: by
`observe` on two random images with random weights; by a hook on the module that returns the gate, or, where no module
does, by a dispatch mode inside the one that multiplies.
"""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The last line of every architecture, by name."""
    if not path.exists():
        return []
    lines = {line["name"]: line for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    return [lines[name] for name in sorted(lines)]


def falls_short(line: dict[str, Any]) -> bool:
    """Whether anything differs from what is expected."""
    if "failure" in line:
        return True
    return line["found"] != line["expected"] or line.get("recorded", 0) != sum(line["expected"].values())


def write_gates_summary(folder: Path, reasons: dict[str, str] | None = None) -> int:
    """Write GATES.md and settle gates.jsonl; 1 where a shortfall has no reason on file."""
    reasons = json.loads(REASONS.read_text(encoding="utf-8")) if reasons is None else reasons
    lines = read_lines(folder / "gates.jsonl")
    (folder / "gates.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    short = [line for line in lines if falls_short(line)]
    unexplained = [line for line in short if line["name"] not in reasons]
    parts = [_HEAD, _totals(lines, short), _by_class(lines), _shortfalls(short, reasons), _every(lines)]
    (folder / "GATES.md").write_text("\n".join(parts), encoding="utf-8")
    return 1 if unexplained else 0


def _total(lines: list[dict[str, Any]], key: str) -> int:
    return sum(sum(line.get(key, {}).values()) for line in lines)


def _totals(lines: list[dict[str, Any]], short: list[dict[str, Any]]) -> str:
    gated = [line for line in lines if line.get("expected")]
    told = {tuple(sorted(line["versions"].items())) for line in lines}
    versions = "; ".join(", ".join(f"{name} {version}" for name, version in pairs) for pairs in sorted(told))
    return (
        f"{len(lines)} architectures ({versions}), {len(gated)} of them with channel gates: "
        f"**{_total(lines, 'found')} found of {_total(lines, 'expected')} expected**, "
        f"{sum(line.get('recorded', 0) for line in lines)} recorded "
        f"({sum(line.get('hooked', 0) for line in lines)} by hooks). "
        f"{len(lines) - len(short)} architectures exactly as expected, {len(short)} not.\n"
    )


def _by_class(lines: list[dict[str, Any]]) -> str:
    architectures: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for line in lines:
        expected.update(line.get("expected", {}))
        found.update(line.get("found", {}))
        architectures.update(set(line.get("expected", {})) | set(line.get("found", {})))
    rows = [f"| `{name}` | {count} | {found[name]} / {expected[name]} |" for name, count in architectures.most_common()]
    return "\n".join(
        ["| class of the module that multiplies | architectures | found / expected |", "|---|---|---|", *rows, ""]
    )


def _shortfalls(short: list[dict[str, Any]], reasons: dict[str, str]) -> str:
    if not short:
        return "No shortfall.\n"
    rows = []
    for line in short:
        counts = f"{sum(line.get('found', {}).values())} / {sum(line.get('expected', {}).values())}"
        told = reasons.get(line["name"]) or f"unexplained: {line.get('failure', 'other counts')}"
        rows.append(f"- `{line['name']}`: {counts} found, {line.get('recorded', 0)} recorded. {told}")
    return "\n".join(["## Shortfalls, and why", "", *rows, ""])


def _every(lines: list[dict[str, Any]]) -> str:
    gated = [line for line in lines if line.get("expected") or line.get("found")]
    rows = [
        f"| `{line['name']}` | {sum(line.get('found', {}).values())} / {sum(line.get('expected', {}).values())} "
        f"| {line.get('recorded', 0)} | {line.get('hooked', 0)} | {line.get('others', 0)} |"
        for line in gated
    ]
    head = [
        "## Every architecture with a channel gate",
        "",
        "| | found / expected | recorded | by hook | listed, no gate |",
    ]
    return "\n".join([*head, "|---|---|---|---|---|", *rows, ""])
