"""What the gates did over training, gate by gate and epoch by epoch, from the raw files."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.plan import RESULTS, Study, list_runs
from benchmarks.accuracy.tables import markdown

QUANTITIES = {
    "stripe_index": "stripe index (1: every image gets the same vector)",
    "within_over_mean": "deviation of a channel over the images, over its mean",
    "share_of_class": "share of that variance that goes with the image's class",
    "share_of_few": "share of it in the one channel in sixteen that moves most",
    "first_difference": "mean change of a scale since the last epoch",
}
SHARES = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
"""Of a run's epochs: the columns."""
Rows = list[dict[int, list[dict[str, Any]]]]
"""Per seed: epoch -> a row per gate"""


def load_stripes(studies: Mapping[str, Study], folder: Path = RESULTS) -> dict[tuple[str, str], Rows]:
    """(study, configuration) -> what was observed, seed by seed.

    Args:
        studies: The plan.
        folder: Of the raw files.
    """
    found: dict[tuple[str, str], Rows] = {}
    for run in list_runs(studies, gpu=True):
        path = folder / f"{run.name}.stripes.json"
        if path.exists():
            rows = {int(epoch): each for epoch, each in json.loads(path.read_text(encoding="utf-8")).items()}
            found.setdefault((run.study, run.configuration), []).append(rows)
    return found


def stripes_section(studies: Mapping[str, Study], found: Mapping[tuple[str, str], Rows]) -> str:
    """A table per attention and quantity, of the runs without noise.

    Args:
        studies: The plan.
        found: What ``load_stripes`` gave.
    """
    shown = [key for key in found if not studies[key[0]].options.get("batch_noise")]
    if not shown:
        return "No run with dynamic attention is finished yet."
    return "\n\n".join(part for key in shown for part in _tables(studies[key[0]], key[1], found[key]))


def _tables(study: Study, label: str, rows: Rows) -> Iterator[str]:
    last = max(max(each) for each in rows)
    epochs = sorted({round(share * last) for share in SHARES})
    seeds = "one seed" if len(rows) == 1 else f"mean over {len(rows)} seeds"
    yield f"#### {label}, {last} epochs ({seeds}, 512 test images)"
    yield in_short(rows, last)
    for name, words in QUANTITIES.items():
        head = [words, *(f"epoch {epoch}" for epoch in epochs)]
        yield markdown(head, gate_rows(name, rows, epochs))


def in_short(rows: Rows, last: int) -> str:
    """Means over all gates and seeds, before training, after one epoch and at the end, in a sentence.

    Args:
        rows: Of each seed.
        last: The last epoch.
    """
    words = {"stripe_index": "stripe index", "within_over_mean": "deviation over mean", "share_of_class": "class"}
    parts = []
    for name, word in words.items():
        means = [_over_gates(rows, name, epoch) for epoch in (0, min(1, last), last)]
        parts.append(
            f"{word} {means[0]:.2f} before training, {means[1]:.2f} after one epoch, {means[2]:.2f} at the end"
        )
    end = {gate[0]: float(gate[1]) for gate in gate_rows("stripe_index", rows, [last])}
    least, most = min(end, key=lambda gate: end[gate]), max(end, key=lambda gate: end[gate])
    ends = f"lowest in {least} ({end[least]:.2f}) and highest in {most} ({end[most]:.2f})"
    return f"Mean over the {len(end)} gates: {'; '.join(parts)}. At the end the index is {ends}."


def _over_gates(rows: Rows, name: str, epoch: int) -> float:
    return mean_of([gate[name] for each in rows if epoch in each for gate in each[epoch]])


def gate_rows(name: str, rows: Rows, epochs: Sequence[int]) -> list[list[str]]:
    """A row per gate: the mean over the seeds at each epoch.

    Args:
        name: The quantity.
        rows: Of each seed.
        epochs: The columns.
    """
    gates = [row["site"] for row in next(iter(rows[0].values()))]
    table = []
    for number, gate in enumerate(gates):
        series = [[each[epoch][number].get(name) for each in rows if epoch in each] for epoch in epochs]
        means = [mean_of(values) for values in series]
        table.append([f"`{gate}`", *("-" if math.isnan(mean) else f"{mean:.3f}" for mean in means)])
    return table


def mean_of(values: Sequence[float | None]) -> float:
    """The mean of what was observed; NaN where nothing was.

    A gate that is the same for every image has no variance of which the class could have a share: such a seed is left
    out.
    """
    known = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan
