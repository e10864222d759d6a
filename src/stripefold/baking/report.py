"""The bake report: which gates became constants, which stay, why, what it cost and what it gained."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from stripefold.atomic import write_text
from stripefold.baking import table
from stripefold.documents import finite
from stripefold.errors import BakeError

GateOutcome = Literal["folded", "multiply", "asr", "constant", "dynamic"]


@dataclass(frozen=True, kw_only=True)
class SiteResult:
    """What became of one gate.

    Attributes:
        name: the gate, as ``observe`` names it.
        kind: class of the module in which it is multiplied on.
        channels: C.
        stripe_index: between-channel variance over total variance of v.
        within_over_mean: mean deviation of a channel over the images, relative to the mean of |v|.
        prior: the relative squared error a constant makes in the gate's output (see ``sensitivity.prior``).
        alone: the metric with this gate constant and all others as they were; None where it was not measured.
        cumulative: the metric with it and those accepted before it constant; None without ``max_drop``.
        outcome: "folded" into layers, "multiply" (a constant factor remains), "asr" (a trainable gate), "constant" (its
            value is constant, but what computed it still runs, so it is not baked) or "dynamic".
        remaining: operations that computed it and still run, for nothing.
        moving_channels: effective number of channels that vary over the images; few of many make a small mean deviation
            say nothing.
        largest_share: share of the variance in the channel that varies most.
        place: the layers that took it, or the module that remains.
        why: the reason, in words.
    """

    name: str
    kind: str
    channels: int
    stripe_index: float | None
    within_over_mean: float | None
    prior: float | None
    alone: float | None
    cumulative: float | None
    outcome: GateOutcome
    place: str
    why: str
    remaining: int = 0
    moving_channels: float | None = None
    largest_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Median seconds of a forward pass, both models measured in turns.

    Attributes:
        before: with dynamic gates.
        after: baked.
        batch: images in a pass.
        device: where.
    """

    before: float
    after: float
    batch: int
    device: str

    @property
    def ratio(self) -> float:
        """After over before: below 1 is a gain."""
        return self.after / self.before


@dataclass(frozen=True, kw_only=True)
class BakeReport:
    """What one ``bake`` did; prints as a table.

    Attributes:
        model: class of the model.
        sites: one row per gate, in the order of the network.
        constants: what the constants are: "mean", "energy", "least-squares" or "descriptor".
        to: "plain" or "asr".
        images: images that the constants come from.
        metric: what the figures are, or None where nothing could be measured.
        before: the metric of the model as it was given.
        constant: with the chosen gates constant, before any repair.
        recalibrated: after BatchNorm statistics were re-estimated, or None.
        finetuned: after the constants were trained, or None.
        settled: after all weights were trained on the way to the constants, or None.
        settle: how they were, in words, or None.
        after: of the model that is returned.
        max_drop: the budget, in units of the metric.
        norms: BatchNorms whose statistics are new.
        speed: or None where it was not asked for.
        notes: whatever else the user should know.
        versions: of stripefold and torch.
    """

    model: str
    sites: tuple[SiteResult, ...]
    constants: str
    to: str
    images: int
    metric: str | None = None
    before: float | None = None
    constant: float | None = None
    recalibrated: float | None = None
    finetuned: float | None = None
    settled: float | None = None
    settle: str | None = None
    after: float | None = None
    max_drop: float | None = None
    norms: tuple[str, ...] = ()
    speed: Speed | None = None
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def baked(self) -> tuple[SiteResult, ...]:
        """Gates that are no longer dynamic, and whose attention no longer runs."""
        return tuple(site for site in self.sites if site.outcome not in ("dynamic", "constant"))

    @property
    def still_computed(self) -> tuple[SiteResult, ...]:
        """Gates whose value is constant while what computed it still runs."""
        return tuple(site for site in self.sites if site.outcome == "constant")

    @property
    def kept(self) -> tuple[SiteResult, ...]:
        """Gates that stay as they were."""
        return tuple(site for site in self.sites if site.outcome == "dynamic")

    @property
    def folded(self) -> tuple[SiteResult, ...]:
        """Gates of which nothing is left."""
        return tuple(site for site in self.sites if site.outcome == "folded")

    def __str__(self) -> str:
        return table.as_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes None, as JSON demands."""
        values: dict[str, Any] = finite(asdict(self))
        return values

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one line per gate.

        Raises:
            BakeError: the file cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, [spec.name for spec in fields(SiteResult)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(site) for site in self.sites)
        return _written(path, text.getvalue())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything as JSON.

        Raises:
            BakeError: the file cannot be written.
        """
        return _written(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")


def _written(path: str | os.PathLike[str], text: str) -> Path:
    try:
        write_text(path, text)
    except OSError as error:
        raise BakeError(f"cannot write the report to {os.fspath(path)}: {error.strerror or error}") from error
    return Path(path)
