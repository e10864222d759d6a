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
    "autocast_inside": Known(("branch, f",), "the float64 run of verify does without the model's autocast"),
    "bfloat16_part": Known(_FOLDS, "the float64 run of verify leaves its casts out; see float32_part"),
    "cache_lru": Known(_FOLDS, "a function's cache keeps a grid of verify's float64 run"),
    "float32_part": Known(_FOLDS, "the forward reads the weight of a norm that fuse replaced"),
    "forward_writes_weight": Known(_FOLDS, "the forward writes into what fuse replaced"),
    "hard_gate": Known(("observe",), "a gate of comparisons has no row"),
    "hook_always_called": Known(("verify",), "a float64 tensor of verify's reaches the user's collection"),
    "hook_collects": Known(_FOLDS, "as hook_always_called"),
    "hook_sums": Known(_FOLDS, "as hook_always_called"),
    "in_a_list": Known(("attach", *_FOLDS), "the layer is called through a container that still holds the old one"),
    "isinstance_inside_residual": Known(("branch",), "a walk in the forward meets the branches of a block, one by one"),
    "lazy": Known(("sites", "attach", "observe", "bake", "branch", *_FOLDS), "torch's own error comes out"),
    "normalised_by_hand": Known(("observe",), "a normalisation is reported as a gate"),
}


def is_open(network: Network, finding: Finding) -> bool:
    """Whether the finding is one of the known."""
    return any(step in OPEN and finding.call.startswith(OPEN[step].calls) for step in network.steps)
