"""Faults that are known and not mended yet; a row goes when its fault does."""

from __future__ import annotations

from typing import NamedTuple

from tests.grammar.check import Finding
from tests.grammar.network import Network


class Known(NamedTuple):
    """Calls whose names begin so go wrong with a piece, and why."""

    calls: tuple[str, ...]
    why: str


OPEN: dict[str, Known] = {}


def is_open(network: Network, finding: Finding) -> bool:
    """Whether the finding is one of the known."""
    return any(step in OPEN and finding.call.startswith(OPEN[step].calls) for step in network.steps)
