"""Does a model still run what it ran, once something stands in for its layers?

What stands in is an instance of the layer's class and has its attributes; code that asks for the exact type, for the
children or for the parameters by name sees the difference, and may take another path.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from stripefold.errors import StripefoldError, TraceError
from stripefold.folding.rule import rule_for
from stripefold.surgery.example import Example, infer_example
from stripefold.surgery.foldable import Foldable
from stripefold.surgery.trace import trace

Step = tuple[str, str, tuple[int, ...]]
"""What ran, where, and the shape of what it gave."""
Steps = list[list[Step]]
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
    return [
        [(node.name, node.where, node.shape) for node in graph.nodes if node.role == "activation" and node.name]
        for graph in graphs
    ]


def used_without_call(model: nn.Module, layers: Collection[nn.Module]) -> frozenset[str]:
    """Those of some layers whose weight the model uses on its example without calling them; none without an example."""
    example = infer_example(model)
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
    for mine, its in zip(before, after, strict=True):
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


def _in_words(steps: list[Step], index: int) -> str:
    if index >= len(steps):
        return "it ended"
    name, where, _ = steps[index]
    return f"{name!r} ran in {where!r}" if where else f"{name!r} ran"
