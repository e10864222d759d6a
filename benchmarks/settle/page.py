"""The page of `benchmarks.settle`: each way beside its control, paired by seed.

python -m benchmarks.settle.page            # writes results/README.md from the raw files
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.settle.plan import RESULTS, Setting, load_plan
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


def table(setting: Setting, runs: Runs) -> list[str]:
    """Lines of Markdown: accuracy, and the difference to the control on the seeds that both have.

    Args:
        setting: Of the plan.
        runs: Its finished runs.
    """
    lines = [
        f"## {setting.name}", "",
        f"{setting.images} images of {setting.data} at {setting.size} pixels; {setting.recipe['epochs']} epochs, then "
        f"{setting.steps} steps.", "",
        "| way | seeds | accuracy, % | minus the control, % | each seed |", "|---|---|---|---|---|",
    ]  # fmt: skip
    control = {seed: run["accuracy"] for seed, run in runs.get("control", {}).items()}
    for name, figures in _rows(setting, runs):
        pairs = [(seed, value - control[seed]) for seed, value in sorted(figures.items()) if seed in control]
        each = ", ".join(f"{seed}: {value:+.2f}" for seed, value in pairs)
        accuracy = statistics.mean(figures.values())
        lines.append(
            f"| {name} | {len(figures)} | {accuracy:.2f} | {_spread([value for _, value in pairs])} | {each} |"
        )
    return [*lines, ""]


def _rows(setting: Setting, runs: Runs) -> list[tuple[str, dict[int, float]]]:
    """Name of a row -> seed -> accuracy: what was trained, and what was not."""
    rows = [(way, {seed: run["accuracy"] for seed, run in runs[way].items()}) for way in setting.ways if way in runs]
    for way, key, name in (
        ("control", "as_given", "as given, no training"),
        ("first", "constants", "all gates their mean, no training"),
        ("energy", "constants", "all gates energy-weighted, no training"),
    ):
        if way in runs:
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
        "[plan.yaml](../plan.yaml). Top-1 accuracy on the test images after the last step, mean ± standard deviation.", "",
    ]  # fmt: skip
    for name, setting in load_plan().items():
        runs = read_runs(folder / name)
        if runs:
            lines += table(setting, runs)
    write_text(folder / "README.md", "\n".join(lines).rstrip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
