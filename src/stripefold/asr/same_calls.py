"""Does a model with gates still run what it ran without them? Its code may ask a layer for what only that layer has.

A site is an instance of its layer's class and has its attributes; code that asks for the exact type, for the children
or for the parameters by name sees the difference, and may take another path.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from stripefold.errors import AttachError, TraceError
from stripefold.folding.rule import rule_for
from stripefold.surgery.example import Example, infer_example
from stripefold.surgery.foldable import Foldable
from stripefold.surgery.trace import trace

Steps = list[list[tuple[str, str, tuple[int, ...]]]]
"""For each input what a model did: what ran, where, and the shape of what it gave."""


def steps_of(model: nn.Module, example: Example | None, layers: Collection[nn.Module]) -> Steps | None:
    """What the model does on its example, the layers that carry gates (or will) as one step each.

    Returns:
        None where there is no example, or the model does not run on it.
    """
    example = infer_example(model) if example is None else example
    if example is None:
        return None
    chosen = {id(layer) for layer in layers}

    def is_layer(module: nn.Module) -> bool:
        return id(module) in chosen or isinstance(module, Foldable) or rule_for(module) is not None

    try:
        graphs = trace(model, example, is_layer=is_layer).graphs
    except TraceError:
        return None
    return [
        [(node.name, node.where, node.shape) for node in graph.nodes if node.role == "activation" and node.name]
        for graph in graphs
    ]


def check_same_steps(before: Steps | None, after: Steps | None) -> None:
    """See that a model does what it did.

    Raises:
        AttachError: it does something else, or does not run any more.
    """
    if before is None:
        return
    if after is None:
        raise AttachError(
            "the model does not run on its example any more once its layers carry gates. Its code asks a layer for "
            f"{_ASKS}"
        )
    for mine, its in zip(before, after, strict=True):
        if mine == its:
            continue
        index = next((k for k, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b), min(len(mine), len(its)))
        ran = _in_words(mine, index)
        now = _in_words(its, index)
        raise AttachError(
            f"the model takes another path once its layers carry gates: {ran} on its example without them, and {now} "
            f"with them. Its code asks a layer for {_ASKS}"
        )


_ASKS = (
    "its exact type (type(layer) is ...), its children or its parameters, which a layer with gates does not have as "
    "its own. Ask isinstance(layer, ...) there, or leave those layers out with where=..."
)


def _in_words(steps: list[tuple[str, str, tuple[int, ...]]], index: int) -> str:
    if index >= len(steps):
        return "it ended"
    name, where, _ = steps[index]
    return f"{name!r} ran in {where!r}" if where else f"{name!r} ran"
