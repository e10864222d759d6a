"""Results: a table for a person, JSON for a file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stripefold.atomic import write_text
from stripefold.documents import DocumentError, read_json, shown
from stripefold.errors import DataError
from stripefold.records import checked, record

COLUMNS = ("candidate", "median", "quartiles", "ratio", "quartiles", "peak memory", "ratio", "claims")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and quartiles of some samples."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Return the spread of at least one sample."""
        if len(samples) == 1:
            return cls(median=samples[0], lower=samples[0], upper=samples[0])
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median=median, lower=lower, upper=upper)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate.

    Attributes:
        name: The candidate.
        seconds: Seconds per call.
        ratio: Seconds relative to the baseline of the same round.
        peak_bytes: The most bytes alive at once, where measured.
        peak_ratio: The same relative to the baseline.
        limits: What we claim: one of `seconds`, `ratio`, `peak_bytes`, `peak_ratio` -> the most it may be.
    """

    name: str
    seconds: Spread
    ratio: Spread
    peak_bytes: int | None = None
    peak_ratio: float | None = None
    limits: Mapping[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, float | None]:
        """Return what a claim may be about, `None` where it was not measured."""
        return {
            "seconds": self.seconds.median,
            "ratio": self.ratio.median,
            "peak_bytes": self.peak_bytes,
            "peak_ratio": self.peak_ratio,
        }

    def missed(self) -> list[str]:
        """Return the claims that do not hold; one about what was not measured does not hold."""
        values = self.values()
        return [name for name, limit in self.limits.items() if (value := values[name]) is None or value > limit]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All candidates of one measurement, with what is needed to judge it.

    Attributes:
        title: What was measured.
        date: The day, as given by the caller.
        environment: Device, versions, threads.
        settings: Rounds, calls, seed and whatever else decides the result.
        rows: The first is the baseline.
    """

    title: str
    date: str
    environment: Mapping[str, str | int]
    settings: Mapping[str, Any]
    rows: tuple[Row, ...] = field(default=())

    def with_limits(self, limits: Mapping[str, Mapping[str, float]]) -> Report:
        """Return the report with claims: row name -> limits of that row."""
        rows = tuple(replace(row, limits=dict(limits.get(row.name, {}))) for row in self.rows)
        return replace(self, rows=rows)

    def row(self, name: str) -> Row:
        """Return the row of that name."""
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "rows": [{**asdict(row), "missed": row.missed()} for row in self.rows]}

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read what `save` wrote.

        Raises:
            DataError: It is something else, or damaged.
        """
        try:
            return cls.from_dict(checked(dict[str, Any], read_json(path), "it"))
        except DocumentError as error:
            raise DataError(f"{path} is no report of a measurement: {error}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """The report that gave these values; `to_dict` turned around.

        Raises:
            DocumentError: They are something else.
        """
        rows = checked(list[dict[str, Any]], values.get("rows"), "rows")
        bare = [{name: value for name, value in row.items() if name != "missed"} for row in rows]
        report = record(cls, {**values, "rows": bare}, "it")
        for row in report.rows:
            if odd := [name for name in row.limits if name not in row.values()]:
                raise DocumentError(f"a claim is about {shown(odd[0])}, which nothing measures")
        return report

    def table(self) -> list[tuple[str, ...]]:
        """Return one tuple of cells per row, in the order of `COLUMNS`."""
        return [_cells(row) for row in self.rows]

    def markdown(self) -> str:
        """Return the title, the circumstances and the table as Markdown."""
        where = ", ".join(f"{name} {value}" for name, value in self.environment.items())
        how = ", ".join(f"{name} {_told(value)}" for name, value in self.settings.items())
        lines = [f"### {self.title}", "", f"{self.date}: {where}. {how}.".removeprefix(": "), ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        lines += ["| " + " | ".join(cells) + " |" for cells in self.table()]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        """Return the title and an aligned plain table."""
        rows = [COLUMNS, *self.table()]
        widths = [max(len(row[index]) for row in rows) for index in range(len(COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.title, *lines])


def _told(value: Any) -> str:
    """A setting as text; what was skipped is a mapping from names to reasons."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name} ({reason})" for name, reason in value.items())
    return str(value)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        format_seconds(row.seconds.median),
        f"{format_seconds(row.seconds.lower)} .. {format_seconds(row.seconds.upper)}",
        f"{row.ratio.median:.3f}",
        f"{row.ratio.lower:.3f} .. {row.ratio.upper:.3f}",
        "" if row.peak_bytes is None else format_bytes(row.peak_bytes),
        "" if row.peak_ratio is None else f"{row.peak_ratio:.3f}",
        _claims(row),
    )


def _claims(row: Row) -> str:
    missed = row.missed()
    texts = []
    for name, limit in row.limits.items():
        shown = _FORMATS.get(name, "{:.3f}".format)(limit)
        texts.append(f"{name} <= {shown}: {'MISSED' if name in missed else 'holds'}")
    return ", ".join(texts)


def format_seconds(seconds: float) -> str:
    """Return seconds with a readable unit.

    >>> format_seconds(0.0123)
    '12.30 ms'
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds * 1e6:.1f} us"


def format_bytes(size: float) -> str:
    """Return bytes as MiB.

    >>> format_bytes(2**20)
    '1.0 MiB'
    """
    return f"{size / 2**20:.1f} MiB"


_FORMATS = {"seconds": format_seconds, "peak_bytes": format_bytes}
