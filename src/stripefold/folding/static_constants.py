"""Find the static constants of a model: products by, and additions of, one of its parameters, seen in a trace.

By what is computed, not by the names of classes. Products along one axis: LayerScale as a module, as a parameter of a
block (ConvNeXt's ``gamma``), a learned gain for all channels (NFNet's ``skipinit_gain``). Additions along one axis: a
learned bias of channels (ReActNet's shifts); one that differs along several axes, such as a position embedding, is
found as well, with the reason why it stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from stripefold.graph.graph import Graph, Node
from stripefold.graph.operation_names import WHOLE_VIEWS
from stripefold.layers.accepts import is_affine_map
from stripefold.layers.rule import rule_for
from stripefold.modules.foldable import Foldable

_CONSTANT_VIEWS = WHOLE_VIEWS | {"expand_as", "_to_copy", "to"}
_KINDS: dict[str, Literal["scale", "addition"]] = {"mul": "scale", "add": "addition", "sub": "addition"}


@dataclass(frozen=True, kw_only=True)
class StaticConstant:
    """One product by a constant, or one addition of a constant.

    Attributes:
        kind: which of the two.
        path: dotted path of the parameter.
        module: dotted path of the module in which it happens.
        result: the node of the product or the sum.
        moved: the node that is multiplied, or added to.
        axis: the channel axis, or None: one number for everything.
        whole: the module is nothing but x -> x * constant, or x -> x + constant.
        sign: -1 where the constant is subtracted, else 1.
        hindrance: why it stays wherever it stands, or None.
    """

    kind: Literal["scale", "addition"]
    path: str
    module: str
    result: int
    moved: int
    axis: int | None
    whole: bool
    sign: int
    hindrance: str | None


def is_step(module: nn.Module) -> bool:
    """Whether a trace takes a module as one step: layers with a rule, but not those that only scale."""
    if isinstance(module, Foldable) or is_affine_map(module):
        return True
    rule = rule_for(module)
    return rule is not None and (rule.norm or not rule.elementwise(module))


def static_constants(graph: Graph, model: nn.Module) -> Iterator[StaticConstant]:
    """Every static constant, in the order of computation.

    Args:
        graph: of a trace with ``is_step``.
        model: the traced model.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, index in graph.tensors.items():
        if name in parameters:  # a buffer is not learned: others may read it, as they do the mean and std of images
            names.setdefault(index, []).append(name)
    modules = dict(model.named_modules())
    for result, node in enumerate(graph.nodes):
        for constant, moved in _operands(node):
            found = _described(graph, (result, constant, moved), names, modules)
            if found is not None:
                yield found


def _operands(node: Node) -> list[tuple[int, int]]:
    """(constant, moved) as a node may have them: ``c - x`` and ``x + alpha c`` are neither scale nor addition."""
    plain = node.kind == "operation" and node.role == "activation" and len(node.inputs) == 2
    if not plain or node.name not in _KINDS or node.arguments.get("alpha", 1) != 1:
        return []
    first, second = node.inputs
    return [(second, first)] if node.name == "sub" else [(first, second), (second, first)]


def _described(
    graph: Graph, nodes: tuple[int, int, int], names: Mapping[int, list[str]], modules: Mapping[str, nn.Module]
) -> StaticConstant | None:
    """What a node with this constant operand is, or None where it is neither a scale nor an addition of channels."""
    result, constant, moved = nodes
    node, chain = graph.nodes[result], _views_behind(graph, constant)
    paths, kind = names.get(chain[-1], []), _KINDS[node.name]
    if not paths or graph.nodes[chain[-1]].owners or graph.nodes[moved].role != "activation":
        return None
    axes = _axes(graph, chain, node)
    if (len(axes) > 1 and kind == "scale") or graph.nodes[moved].shape != node.shape:
        return None
    several = f"it differs along {len(axes)} axes: {_shape(graph, chain)}" if len(axes) > 1 else None
    return StaticConstant(
        kind=kind,
        path=paths[0],
        module=node.where,
        result=result,
        moved=moved,
        axis=axes[0] if axes else None,
        whole=_is_whole(graph, result, moved, modules[node.where], node.where),
        sign=-1 if node.name == "sub" else 1,
        hindrance=several or _shared(graph, [result, *chain], paths),
    )


def _views_behind(graph: Graph, index: int) -> list[int]:
    """A constant, and what it is a view of, to the end."""
    chain = [index]
    while (node := graph.nodes[chain[-1]]).name in _CONSTANT_VIEWS and len(node.inputs) == 1:
        chain.append(node.inputs[0])
    return chain


def _axes(graph: Graph, chain: list[int], result: Node) -> list[int]:
    """The axes of a result along which a constant differs."""
    shape = _shape(graph, chain)
    missing = len(result.shape) - len(shape)
    return [missing + dim for dim, size in enumerate(shape) if size != 1]


def _shape(graph: Graph, chain: list[int]) -> tuple[int, ...]:
    """The shape that meets the other operand, before it was expanded."""
    return next((graph.nodes[i].shape for i in chain if graph.nodes[i].name not in ("expand", "expand_as")), ())


def _shared(graph: Graph, chain: list[int], paths: list[str]) -> str | None:
    if len(paths) > 1:
        return f"{paths[0]} is tied to {', '.join(paths[1:])}"
    for user, value in pairwise(chain):
        if set(graph.consumers[value]) != {user}:
            return f"{paths[0]} is used {len(graph.consumers[value])} times"
    return None


def _is_whole(graph: Graph, result: int, moved: int, module: nn.Module, path: str) -> bool:
    """Whether one call of a module, its only one, takes the moved value and returns the result, by one tensor."""
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    calls = [visit for visit in graph.module_calls if visit.name == path]
    return (
        bool(path)
        and len(tensors) == 1
        and len(calls) == 1
        and calls[0].outputs == (result,)
        and calls[0].inputs == (moved,)
    )
