"""The page of `benchmarks.settle`: each way beside its control, paired by seed.

python -m benchmarks.settle.page            # writes results/README.md from the raw files
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from benchmarks.settle.plan import PLAN, RESULTS, Setting, load_plan
from stripefold.atomic import write_text

Runs = dict[str, dict[int, dict[str, Any]]]
"""Way -> seed -> what was found."""


def read_runs(folder: Path) -> Runs:
    """All finished runs of a setting.

    Args:
        folder: Of its raw files.
    """
    found: Runs = {}
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(run["way"], {})[run["seed"]] = run
    return found


def table(title: str, about: str, ways: Collection[str], runs: Runs) -> list[str]:
    """Lines of Markdown: accuracy, and the difference to the control on the seeds that both have.

    Args:
        title: Of the part.
        about: What was trained how.
        ways: In the plan's order.
        runs: Its finished runs.
    """
    lines = [
        f"## {title}", "", about, "",
        "| way | seeds | accuracy, % | minus the control, % | each seed |", "|---|---|---|---|---|",
    ]  # fmt: skip
    control = {seed: run["accuracy"] for seed, run in runs.get("control", {}).items()}
    for name, figures in _rows(ways, runs):
        pairs = [(seed, value - control[seed]) for seed, value in sorted(figures.items()) if seed in control]
        each = ", ".join(f"{seed}: {value:+.2f}" for seed, value in pairs)
        accuracy = statistics.mean(figures.values())
        lines.append(
            f"| {name} | {len(figures)} | {accuracy:.2f} | {_spread([value for _, value in pairs])} | {each} |"
        )
    return [*lines, ""]


def _about(setting: Setting) -> str:
    return (
        f"{setting.images} images of {setting.data} at {setting.size} pixels; {setting.recipe['epochs']} epochs, then "
        f"{setting.steps} steps."
    )


def _rows(ways: Collection[str], runs: Runs) -> list[tuple[str, dict[int, float]]]:
    """Name of a row -> seed -> accuracy: what was trained, and what was not."""
    rows = [(way, {seed: run["accuracy"] for seed, run in runs[way].items()}) for way in ways if way in runs]
    for way, key, name in (
        ("control", "as_given", "as given, no training"),
        ("first", "constants", "all gates their mean, no training"),
        ("energy", "constants", "all gates energy-weighted, no training"),
        ("control", "constants", "all gates their mean, no training"),
        ("control", "constants_energy", "all gates energy-weighted, no training"),
    ):
        if way in runs and all(key in run for run in runs[way].values()):
            rows.append((name, {seed: run[key] for seed, run in runs[way].items()}))
    return rows


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:+.2f}" for value in values)
    return f"{statistics.mean(values):+.2f} ± {statistics.stdev(values):.2f}"


def main() -> int:
    """Write the page."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    lines = [
        "# Settle, then bake", "",
        "Written by `python -m benchmarks.settle.page`; what is compared, and how, was fixed before the first run in",
        "[plan.yaml](../plan.yaml). Top-1 accuracy on test images after the last step, mean ± standard deviation.", "",
    ]  # fmt: skip
    for name, setting in load_plan().items():
        runs = read_runs(folder / name)
        if runs:
            lines += table(name, _about(setting), setting.ways, runs)
    plan = yaml.safe_load(PLAN.read_text(encoding="utf-8"))["direction"]
    runs = read_runs(folder / "direction")
    if runs:
        about = (
            f"Nine gates of a published network, {plan['steps']} steps on rendered lines, {plan['test']} test lines."
        )
        lines += table("Direction of text lines", about, plan["ways"], runs)
    write_text(folder / "README.md", "\n".join(lines).rstrip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
