"""Checks that a model runs the same modules once its norms are fused: its code may read attributes of a norm.

A forward may ask a layer for its type (``isinstance(layer, nn.BatchNorm2d)``), for a tensor's dtype, for an option.
What is left in a merged norm's place has none of these. So the examples run once more: the same modules have to be
called, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from stripefold.errors import TraceError
from stripefold.folding.static_constants import is_step
from stripefold.graph.graph import Graph
from stripefold.graph.trace import Trace, trace
from stripefold.modules.example import Example

MISSED = "the model's code asks for its type or its attributes, and takes another path where it is gone"


def missed_by_the_code(model: nn.Module, example: Example, before: Trace, merged: Sequence[str]) -> list[str]:
    """Those of the merged norms that have to stay; none where the model calls what it called.

    Args:
        model: with the norms merged.
        example: as it was traced with.
        before: the trace with the norms in it.
        merged: their paths.
    """
    try:
        after = trace(model, example, is_layer=is_step)
    except TraceError as error:
        return _near(error.path, merged)
    for one, other in zip(before.graphs, after.graphs, strict=True):
        mine, its = _called(one, merged), _called(other, merged)
        if mine != its:
            pairs = zip([*mine, ""], [*its, ""], strict=False)
            place = next((a or b for a, b in pairs if a != b), "")
            return _near(place.rpartition(".")[0], merged)
    return []


def _called(graph: Graph, merged: Sequence[str]) -> list[str]:
    """What was called, without what lies inside the norms: of some an activation is left."""
    inside = tuple(f"{name}." for name in merged)
    return [visit.name for visit in graph.module_calls if not visit.name.startswith(inside)]


def _near(path: str, merged: Sequence[str]) -> list[str]:
    """The norms that the code of a module handles, or else all."""
    own = [name for name in merged if name.rpartition(".")[0] == path]
    inside = [name for name in merged if name.startswith(f"{path}.")] if path else []
    return own or inside or list(merged)
