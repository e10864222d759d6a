"""What the scripts share: their options, and where results go."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from stripefold_lab.bench import Report, Settings

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model at one batch size, with what is claimed about it: row name -> limits."""

    model: str
    batch: int
    size: int
    classes: int = 1000
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """Name for a file."""
        return f"{self.model}-batch{self.batch}"


def parse(description: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options that every script takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="tiny models, two rounds, nothing kept: does it run?")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--date", default=date.today().isoformat(), help="the day that results carry")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(arguments)


def settings_from(options: argparse.Namespace, **changes: int) -> Settings:
    """Return the bench settings that the options ask for."""
    values = {"rounds": 2 if options.quick else options.rounds, "warmup": 1 if options.quick else 3, **changes}
    return Settings(device=options.device, dtype=options.dtype, channels_last=options.channels_last, **values)


def publish(report: Report, name: str, options: argparse.Namespace) -> None:
    """Print a report and, unless quick, keep it."""
    print(report, end="\n\n", flush=True)
    if not options.quick:
        report.save(options.output / f"{name}-{options.device.partition(':')[0]}.json")
