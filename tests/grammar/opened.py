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
    "complex_parameter": Known(_FOLDS, "a complex constant is folded as if it were real"),
    "float32_part": Known(_FOLDS, "the forward reads the weight of a norm that fuse replaced"),
    "forward_writes_weight": Known(_FOLDS, "the forward writes into what fuse replaced"),
    "hook_always_called": Known(("verify",), "a float64 tensor of verify's reaches the user's collection"),
    "hook_collects": Known(_FOLDS, "as hook_always_called"),
    "hook_feeds_on": Known(_FOLDS, "a copy's hook writes into the original's object"),
    "hook_sums": Known(_FOLDS, "as hook_always_called"),
    "in_a_list": Known(("attach", *_FOLDS), "the layer is called through a container that still holds the old one"),
    "lazy": Known(("sites", "attach", "observe", "bake", "branch", *_FOLDS), "torch's own error comes out"),
    "norm_by_attribute": Known(_FOLDS, "the other way takes an nn.Identity, which counts as no layer"),
    "shuffled_halves": Known(("sites", "attach", *_FOLDS), "the pattern of a half is reshaped as the whole"),
    "weight_without_call": Known(("branch",), "a convolution is used other than by a call"),
}


def is_open(network: Network, finding: Finding) -> bool:
    """Whether the finding is one of the known."""
    return any(step in OPEN and finding.call.startswith(OPEN[step].calls) for step in network.steps)
