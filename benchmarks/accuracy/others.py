"""The parts of the page beside CIFAR-100: real tasks, and the paper's table of costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.accuracy.plan import slug
from benchmarks.accuracy.scenes import load_tasks
from benchmarks.accuracy.tables import difference, markdown, shown
from stripefold_lab.bench.report import Report
from stripefold_lab.bench.table1 import COLUMNS, load, table
from stripefold_lab.sweep.statistics import estimate, paired
from stripefold_lab.training import load_config
from stripefold_lab.training.tasks import get_task

PICTURES = "../benchmarks/accuracy/results"


def tasks_section(folder: Path) -> str:
    """A table for each task, and its pictures.

    Args:
        folder: Of the raw files.
    """
    return "\n\n".join(_task(name, task, folder) for name, task in load_tasks().items())


def _task(name: str, task: Mapping[str, Any], folder: Path) -> str:
    records = {label: _records(folder / name, label, task["seeds"]) for label in task["configurations"]}
    if not any(records.values()):
        return f"### {task['title']}\n\nNot run yet ({len(records)} configurations, {len(task['seeds'])} seeds each)."
    measure = task["measure"]
    scores = {
        label: {seed: 100 * record["folded"][measure] for seed, record in found.items()}
        for label, found in records.items()
    }
    control = scores["backbone"]
    rows = [
        [
            label,
            shown(estimate(list(found.values()))),
            "" if label == "backbone" else difference(estimate(paired(found, control))),
            f"{len(found)} of {len(task['seeds'])}",
            "" if label == "backbone" else _worst(records[label], measure),
        ]
        for label, found in scores.items()
    ]
    word = get_task(load_config(task["base"]).task).score.word
    head = ["network", f"{word}, folded", "difference [95 %]", "seeds", "folded - as trained, at most"]
    pictures = [
        f"![{label}: image, truth, prediction]({PICTURES}/{name}/{slug(label)}-seed0.jpg)"
        for label in scores
        if (folder / name / f"{slug(label)}-seed0.jpg").exists()
    ]
    return "\n\n".join([f"### {task['title']}", markdown(head, rows), *pictures])


def _records(folder: Path, label: str, seeds: list[int]) -> dict[int, dict[str, Any]]:
    files = {seed: folder / f"{slug(label)}-seed{seed}.json" for seed in seeds}
    return {seed: json.loads(file.read_text(encoding="utf-8")) for seed, file in files.items() if file.exists()}


def _worst(records: Mapping[int, Mapping[str, Any]], measure: str) -> str:
    """The largest change of the score by folding, in points."""
    changes = [abs(record["folded"][measure] - record["trained"][measure]) for record in records.values()]
    return f"{100 * max(changes):.4f}" if changes else "-"


def table1_section(folder: Path) -> str:
    """What `stripefold bench --table1` measured, by device.

    Args:
        folder: Of the raw files; holds ``table1-DEVICE.json``.
    """
    reports = [report for file in sorted(folder.glob("table1-*.json")) for report in load(file)]
    words = "Changes are those of the throughput against the network itself." if reports else "Not measured yet."
    return "\n\n".join([f"{words} The command: `stripefold bench --table1`.", *(_table1(report) for report in reports)])


def _table1(report: Report) -> str:
    where = ", ".join(f"{name} {value}" for name, value in report.environment.items())
    return "\n\n".join([f"### {report.title}", markdown(COLUMNS, table(report)), where])
