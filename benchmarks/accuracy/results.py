"""From the raw files to figures: means, paired differences with their intervals, and sign counts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.plan import RESULTS, Study, list_runs
from stripefold_lab.sweep.statistics import Estimate, estimate, joint_level, paired

Records = dict[tuple[str, str, int], dict[str, Any]]
"""(study, configuration, seed) -> what its raw file holds"""
AHEAD, BEHIND = "result: ahead", "result: behind"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two configurations, paired by seed; in points.

    Attributes:
        first: Label.
        second: Label of what it is compared with.
        primary: Whether the plan tests it.
        planned: How many pairs the plan asks for.
        difference: first - second; None without a pair.
        joint: The same with the interval under which all primary ones of the study hold together; else None.
        ahead: In how many pairs the first is ahead.
        behind: In how many it is behind.
        sign: Two-sided probability of such a count by chance, ties left out; None without a pair that differs.
    """

    first: str
    second: str
    primary: bool
    planned: int
    difference: Estimate | None
    joint: Estimate | None
    ahead: int
    behind: int
    sign: float | None

    @property
    def pairs(self) -> int:
        """How many there are."""
        return 0 if self.difference is None else len(self.difference.values)

    @property
    def verdict(self) -> str:
        """What the plan makes of it: ``result`` and its direction, ``null``, ``described`` or how far it is."""
        if self.pairs < self.planned:
            return f"{self.pairs} of {self.planned} pairs"
        found = self.difference
        if not self.primary or found is None or found.low is None or found.high is None:
            return "described"
        if found.low <= 0 <= found.high:
            return "null"
        return AHEAD if found.low > 0 else BEHIND


def load_records(studies: Mapping[str, Study], folder: Path = RESULTS) -> Records:
    """Every raw file that the plan knows.

    Args:
        studies: The plan.
        folder: Where they lie.

    Raises:
        ValueError: A file is not of the run that the plan describes.
    """
    records: Records = {}
    for run in list_runs(studies, gpu=True):
        path = folder / f"{run.name}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["options"] != json.loads(json.dumps(run.options)):
            raise ValueError(f"{path} was trained with other options than the plan's; move one of them")
        records[run.study, run.configuration, run.seed] = record
    return records


def figure(record: Mapping[str, Any], judged: str) -> float:
    """What a run is judged by, in per cent: as deployed (folded where it folds), or with the noise left on."""
    return float(record["noise_on"] if judged == "noise_on" else record.get("folded", record["trained"]))


def device_of(record: Mapping[str, Any]) -> str:
    """On what it was trained, all of it."""
    return ", ".join(dict.fromkeys(session["device"] for session in record["sessions"]))


def scores(study: Study, label: str, records: Records, judged: str | None = None) -> dict[int, float]:
    """Seed -> figure of a configuration, of the study's own runs or else of those that it borrows.

    Args:
        study: The study.
        label: The configuration.
        records: What is there.
        judged: Another figure than the study's.
    """
    found = {}
    for seed in study.seeds:
        for source in (study.name, study.borrows):
            record = records.get((source, label, seed)) if source else None
            if record is not None:
                found[seed] = figure(record, judged or study.judged)
                break
    return found


def compare(study: Study, records: Records) -> Iterator[Comparison]:
    """Every comparison of a study, in the plan's order.

    Args:
        study: The study.
        records: What is there.
    """
    level = joint_level(max(1, len(study.primary)))
    for pair in [*study.primary, *study.secondary]:
        primary = pair in study.primary
        differences = _differences(study, pair, records)
        ahead = sum(value > 0 for value in differences)
        behind = sum(value < 0 for value in differences)
        yield Comparison(
            first=pair[0],
            second=pair[1],
            primary=primary,
            planned=len(study.seeds),
            difference=estimate(differences),
            joint=estimate(differences, level=level) if primary else None,
            ahead=ahead,
            behind=behind,
            sign=sign_test(ahead, behind),
        )


def _differences(study: Study, pair: tuple[str, str], records: Records) -> list[float]:
    """Of the seeds that both have, on one kind of device."""
    devices = [
        {seed: device for seed in study.seeds if (device := _device(study, label, seed, records))} for label in pair
    ]
    first, second = (scores(study, label, records) for label in pair)
    alike = {seed: value for seed, value in first.items() if devices[0].get(seed) == devices[1].get(seed)}
    return [round(value, 6) for value in paired(alike, second)]


def _device(study: Study, label: str, seed: int, records: Records) -> str | None:
    for source in (study.name, study.borrows):
        if source and (source, label, seed) in records:
            return device_of(records[source, label, seed])
    return None


def sign_test(ahead: int, behind: int) -> float | None:
    """The exact two-sided probability of a count as uneven as this one; None of no pair.

    Args:
        ahead: Pairs with a positive difference.
        behind: Pairs with a negative one.

    >>> sign_test(8, 0), sign_test(3, 3), sign_test(0, 0)
    (0.0078125, 1.0, None)
    """
    from scipy.stats import binomtest

    return float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else None
