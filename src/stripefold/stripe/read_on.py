"""Attention modules whose in-place result is used: they write into their input, and the model reads that."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from stripefold.graph.graph import Graph
from stripefold.graph.module_calls import ModuleCall
from stripefold.graph.record_run import IsLayer
from stripefold.graph.trace import trace
from stripefold.modules.structural_copy import structural_copy


def read_on(model: nn.Module, example: Any, names: Collection[str], *, is_layer: IsLayer) -> frozenset[str]:
    """The modules among some that write into their input whose input is read afterwards; the model stays as it was.

    ``x = se(x)`` and ``se(x)`` are one and the same to a trace where ``se`` works in place. So each returns a copy
    here: whoever still reads what the module wrote reads its input.

    Args:
        model: Any model.
        example: An input.
        names: Dotted paths of the modules.
        is_layer: As for ``trace``.

    Raises:
        TraceError: The model does not run on the example.
    """
    if not names:
        return frozenset()
    copied = structural_copy(model)
    for name in names:
        copied.get_submodule(name).register_forward_hook(_copy, prepend=True)
    return frozenset().union(
        *(_read_in(graph, names) for graph in trace(copied, example, is_layer=is_layer).graphs),
    )


def _read_in(graph: Graph, names: Collection[str]) -> frozenset[str]:
    return frozenset(
        visit.name for visit in graph.module_calls if visit.name in names and _is_read(graph, visit, graph.dead)
    )


def _copy(module: nn.Module, args: Any, output: Any) -> Any:
    return output.clone() if isinstance(output, Tensor) else output


def _is_read(graph: Graph, visit: ModuleCall, dead: Collection[int]) -> bool:
    """Whether a value made during a call is used after it, or returned by the model; the copy is the node behind it."""
    made = range(visit.first, visit.last)
    users = {user for index in made for user in graph.consumers[index] if user > visit.last and user not in dead}
    return bool(users) or any(index in graph.outputs for index in made)
