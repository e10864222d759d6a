"""What a robustness measurement found."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from stripefold.records import record
from stripefold_lab.training.tasks import get_task

CLEAN = "clean"


@dataclass(frozen=True, kw_only=True)
class Score:
    """The networks of one group under one disturbance.

    Attributes:
        network: Label of the group.
        kind: The disturbance; ``clean`` is none.
        severity: 1 to 5; 0 of the clean images.
        strength: What the severity means for the kind; 0 of the clean images.
        scores: One per seed, 0 to 1.
    """

    network: str
    kind: str
    severity: int
    strength: float
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.scores)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (n - 1); one seed has none."""
        return spread(self.scores)


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """Attached against folded under one disturbance, in float64.

    Attributes:
        source: The run.
        kind: The disturbance, at the highest severity measured.
        error: Largest difference of the outputs over the largest output.
        control: The same between attached and the network without its gates: what a wrong fold could have shown.
    """

    source: str
    kind: str
    error: float
    control: float


@dataclass(frozen=True, kw_only=True)
class RobustnessReport:
    """Scores of several networks under the same disturbances.

    Attributes:
        task: What the networks do.
        measure: What is measured: ``accuracy``, ``miou`` or ``map50``.
        data: The data set.
        images: How many test images.
        noise_seed: Of the disturbances.
        seeds: Label -> the seeds of its runs, in the order of every ``Score.scores``.
        sources: Label -> the files.
        scores: Clean first, then by kind and severity.
        equivalences: Of every run with gates and every kind.
        versions: Of stripefold, torch and torchvision.
    """

    task: str
    measure: str
    data: str
    images: int
    noise_seed: int
    seeds: dict[str, tuple[int, ...]]
    sources: dict[str, tuple[str, ...]]
    scores: tuple[Score, ...]
    equivalences: tuple[Equivalence, ...]
    versions: dict[str, str]

    @property
    def networks(self) -> tuple[str, ...]:
        """The labels, in the order they were given."""
        return tuple(self.seeds)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The disturbances measured, without ``clean``."""
        return tuple(dict.fromkeys(score.kind for score in self.scores if score.kind != CLEAN))

    def of(self, network: str, kind: str) -> tuple[Score, ...]:
        """The scores of one network under one kind, severities rising.

        Args:
            network: A label.
            kind: A kind measured, or ``clean``.
        """
        return tuple(score for score in self.scores if score.network == network and score.kind == kind)

    def average(self, network: str, kind: str) -> tuple[float, ...]:
        """The mean over the severities, one number per seed.

        Args:
            network: A label.
            kind: A kind measured, or ``clean``.
        """
        found = self.of(network, kind)
        return tuple(statistics.fmean(column) for column in zip(*(score.scores for score in found), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with means and spreads beside the single scores."""
        values = asdict(self)
        values["scores"] = [{**asdict(score), "mean": score.mean, "spread": score.spread} for score in self.scores]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RobustnessReport:
        """The report that ``to_dict`` gave, also after a way through JSON.

        Args:
            values: What it gave.
        """
        own = [field.name for field in fields(Score)]
        scores = [{name: each[name] for name in own} for each in values["scores"]]
        return record(cls, {**values, "scores": scores})

    def columns(self) -> list[str]:
        """The head of ``rows``."""
        return ["disturbance", *self.networks]

    def rows(self) -> list[list[str]]:
        """A table: clean, then each kind averaged over its severities, in percent with the spread over the seeds."""
        return [[kind, *(in_percent(self.average(n, kind)) for n in self.networks)] for kind in (CLEAN, *self.kinds)]

    def notes(self) -> list[str]:
        """What has to be said below the table."""
        severities = sorted({score.severity for score in self.scores if score.severity})
        word = get_task(self.task).score.word
        said = [
            f"{word} in percent on {self.images} test images of {self.data}, mean over severities "
            f"{', '.join(map(str, severities))}; every network meets the same noise (seed {self.noise_seed})"
        ]
        counts = {network: len(seeds) for network, seeds in self.seeds.items()}
        several = [f"{network}: {count}" for network, count in counts.items() if count > 1]
        single = [network for network, count in counts.items() if count == 1]
        if several:
            said.append(f"mean ± standard deviation over the seeds ({'; '.join(several)})")
        if single:
            said.append(f"one seed, so nothing is known of the spread: {'; '.join(single)}")
        if self.equivalences:
            worst = max(self.equivalences, key=lambda each: each.error)
            least = min(each.control for each in self.equivalences)
            said.append(
                f"attached and folded agree under every disturbance: worst relative error {worst.error:.1e} in float64 "
                f"({worst.kind}); without the gates at least {least:.1e}"
            )
        return said

    def __str__(self) -> str:
        width = [max(map(len, cells)) for cells in zip(self.columns(), *self.rows(), strict=True)]
        lines = [
            "  ".join(f"{cell:<{w}}" for cell, w in zip(row, width, strict=True)).rstrip()
            for row in (self.columns(), *self.rows())
        ]
        return "\n".join([*lines, "", *self.notes()])


def spread(scores: Sequence[float]) -> float | None:
    """Standard deviation (n - 1); None of a single score."""
    return statistics.stdev(scores) if len(scores) > 1 else None


def in_percent(scores: Sequence[float]) -> str:
    """Mean and spread.

    >>> in_percent([0.5]), in_percent([0.25, 0.75])
    ('50.00', '50.00 ± 35.36')
    """
    around = spread(scores)
    mean = 100 * math.fsum(scores) / len(scores)
    return f"{mean:.2f}" if around is None else f"{mean:.2f} ± {100 * around:.2f}"
