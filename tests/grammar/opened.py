"""Faults that are known and not mended yet; a row goes when its fault does."""

from __future__ import annotations

from typing import NamedTuple

from tests.grammar.check import Finding
from tests.grammar.network import Network


class Known(NamedTuple):
    """Calls whose names begin so go wrong with a piece, and why."""

    calls: tuple[str, ...]
    why: str


_FOLDS = ("fuse", "fold_", "attach, f", "branch, f", "verify", "attach, all")

OPEN: dict[str, Known] = {
    "forward_writes_weight": Known(_FOLDS, "the forward writes into what fuse replaced"),
    "isinstance_inside_residual": Known(("branch",), "a walk in the forward meets the branches of a block, one by one"),
}


def is_open(network: Network, finding: Finding) -> bool:
    """Whether the finding is one of the known."""
    return any(step in OPEN and finding.call.startswith(OPEN[step].calls) for step in network.steps)
