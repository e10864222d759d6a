"""Checks that a model runs the same steps once its layers are replaced.

What stands in is an instance of the layer's class and has its attributes; code that asks for the exact type, for the
children or for the parameters by name sees the difference, and may take another path.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from stripefold.errors import StripefoldError, TraceError
from stripefold.graph.graph import Graph
from stripefold.graph.operation_names import names
from stripefold.graph.trace import trace
from stripefold.layers.rule import rule_for
from stripefold.modules.example import Example, infer_example
from stripefold.modules.foldable import Foldable

RunStep = tuple[str, str]
"""What ran, and where."""
# Operations whose results have as many elements as the values say: a detector finds more or less with other weights.
_COUNTING = names("nonzero masked_select unique _unique2 unique_dim nms batched_nms")


@dataclass(frozen=True)
class RecordedSteps:
    """What a model did on one input.

    Attributes:
        steps: every operation and layer on feature maps, in order.
        layers: every call of a layer, in order.
        depends: whether what ran hangs on values, so that other weights may take another path for good reason.
    """

    steps: list[RunStep]
    layers: list[RunStep]
    depends: bool


Steps = list[RecordedSteps]
"""For each input what a model did."""


def steps_of(model: nn.Module, example: Example | None, layers: Collection[nn.Module]) -> Steps | TraceError | None:
    """What the model does on its example, the layers with a rule and the given ones as one step each.

    Returns:
        None where there is no example; why it does not run, where it does not.
    """
    example = infer_example(model) if example is None else example
    if example is None:
        return None
    chosen = {id(layer) for layer in layers}

    def is_layer(module: nn.Module) -> bool:
        return id(module) in chosen or isinstance(module, Foldable) or rule_for(module) is not None

    try:
        graphs = trace(model, example, is_layer=is_layer).graphs
    except TraceError as error:
        return error
    return [_run(graph) for graph in graphs]


def _run(graph: Graph) -> RecordedSteps:
    return RecordedSteps(
        steps=[(node.name, node.where) for node in graph.nodes if node.role == "activation" and node.name],
        layers=[(call.name, "") for call in graph.calls],
        depends=bool(graph.data_dependent_reads) or any(node.name in _COUNTING for node in graph.nodes),
    )


def used_without_call(model: nn.Module, layers: Collection[nn.Module], example: Any = None) -> frozenset[str]:
    """Those of some layers whose weight the model uses on its example without calling them; none without an example."""
    example = infer_example(model) if example is None else example
    if example is None:
        return frozenset()
    chosen = {id(layer) for layer in layers}
    try:
        recorded = trace(model, example, is_layer=lambda module: id(module) in chosen)
    except TraceError:
        return frozenset()
    implicit = {call.name for graph in recorded.graphs for call in graph.calls if call.implicit}
    return recorded.read | implicit


def check_same_steps(
    before: Steps | TraceError | None, after: Steps | TraceError | None, once: str, error: type[StripefoldError]
) -> None:
    """See that a model does what it did.

    Args:
        before: without what stands in; a model that did not run is not checked.
        after: with it.
        once: what has changed, in words: "its layers carry gates".
        error: what to raise.

    Raises:
        StripefoldError: the model does something else, or does not run any more.
    """
    if before is None or after is None or isinstance(before, TraceError):
        return
    if isinstance(after, TraceError):
        cause = after.__cause__
        if isinstance(cause, StripefoldError):  # what stands in says itself what it does not take
            raise error(f"the model does not run on its example once {once}: {cause}") from cause
        reason = f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"
        raise error(
            f"the model does not run on its example any more once {once} ({reason}). It may be that its code asks a "
            f"layer for {_ASKS}"
        ) from cause
    for one, other in zip(before, after, strict=True):
        mine, its = (one.layers, other.layers) if one.depends else (one.steps, other.steps)
        if mine != its:
            same = (index for index, pair in enumerate(zip(mine, its, strict=False)) if pair[0] != pair[1])
            index = next(same, min(len(mine), len(its)))
            raise error(
                f"the model takes another path once {once}: {_in_words(mine, index)} on its example before, and "
                f"{_in_words(its, index)} now. Its code asks a layer for {_ASKS}"
            )


_ASKS = (
    "its exact type (type(layer) is ...), its children or its parameters, which what stands in for it does not have as "
    "its own. Ask isinstance(layer, ...) there, or leave those layers out with where=..."
)


def _in_words(steps: list[RunStep], index: int) -> str:
    if index >= len(steps):
        return "it ended"
    name, where = steps[index]
    return f"{name!r} ran in {where!r}" if where else f"{name!r} ran"
