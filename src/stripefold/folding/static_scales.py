"""Find the static per-channel scales of a model: products by one of its parameters, along one axis, seen in a trace.

By what is computed, not by the names of classes: LayerScale as a module, as a parameter of a block (ConvNeXt's
``gamma``), a learned gain for all channels (NFNet's ``skipinit_gain``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from stripefold.folding.fuse_parts import is_constant_affine
from stripefold.folding.rule import rule_for
from stripefold.surgery.foldable import Foldable
from stripefold.surgery.graph import Graph, Node
from stripefold.surgery.operations import WHOLE_VIEWS

_CONSTANT_VIEWS = WHOLE_VIEWS | {"expand_as", "_to_copy", "to"}


@dataclass(frozen=True, kw_only=True)
class StaticScale:
    """One product by a constant.

    Attributes:
        path: dotted path of the parameter.
        module: dotted path of the module in which the product runs.
        product: its node.
        scaled: the node that is multiplied.
        axis: the channel axis, or None: one number for everything.
        whole: the module is nothing but x -> x * constant.
        shared: why this very tensor is not only this scale, or None.
    """

    path: str
    module: str
    product: int
    scaled: int
    axis: int | None
    whole: bool
    shared: str | None


def is_step(module: nn.Module) -> bool:
    """Whether a trace takes a module as one step: layers with a rule, but not those that only scale."""
    if isinstance(module, Foldable) or is_constant_affine(module):
        return True
    rule = rule_for(module)
    return rule is not None and (rule.norm or rule.channels is not rule.input_channels)


def static_scales(graph: Graph, model: nn.Module) -> Iterator[StaticScale]:
    """Every static per-channel scale, in the order of computation.

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
    for product, node in enumerate(graph.nodes):
        if node.kind != "operation" or node.name != "mul" or len(node.inputs) != 2 or node.role != "activation":
            continue
        for factor, scaled in (node.inputs, node.inputs[::-1]):
            found = _described(graph, (product, factor, scaled), names, modules)
            if found is not None:
                yield found


def _described(
    graph: Graph, nodes: tuple[int, int, int], names: Mapping[int, list[str]], modules: Mapping[str, nn.Module]
) -> StaticScale | None:
    """The scale that a product by this factor is, or None where it is none."""
    product, factor, scaled = nodes
    chain = _views_behind(graph, factor)
    paths = names.get(chain[-1], [])
    if not paths or graph.nodes[chain[-1]].owners or graph.nodes[scaled].role != "activation":
        return None
    axes = _axes(graph, chain, graph.nodes[product])
    if axes is None or graph.nodes[scaled].shape != graph.nodes[product].shape:
        return None
    where = graph.nodes[product].where
    return StaticScale(
        path=paths[0],
        module=where,
        product=product,
        scaled=scaled,
        axis=axes[0] if axes else None,
        whole=_is_whole(graph, product, scaled, modules[where], where),
        shared=_shared(graph, [product, *chain], paths),
    )


def _views_behind(graph: Graph, index: int) -> list[int]:
    """A constant, and what it is a view of, to the end."""
    chain = [index]
    while (node := graph.nodes[chain[-1]]).name in _CONSTANT_VIEWS and len(node.inputs) == 1:
        chain.append(node.inputs[0])
    return chain


def _axes(graph: Graph, chain: list[int], product: Node) -> list[int] | None:
    """The one axis of a product along which a factor differs, [] where it is one number, None for several axes."""
    shape = next((graph.nodes[i].shape for i in chain if graph.nodes[i].name not in ("expand", "expand_as")), ())
    missing = len(product.shape) - len(shape)
    axes = [missing + dim for dim, size in enumerate(shape) if size != 1]
    return axes if len(axes) <= 1 else None


def _shared(graph: Graph, chain: list[int], paths: list[str]) -> str | None:
    if len(paths) > 1:
        return f"{paths[0]} is tied to {', '.join(paths[1:])}"
    for user, value in pairwise(chain):
        if set(graph.consumers[value]) != {user}:
            return f"{paths[0]} is used {len(graph.consumers[value])} times"
    return None


def _is_whole(graph: Graph, product: int, scaled: int, module: nn.Module, path: str) -> bool:
    """Whether one call of a module, its only one, takes the scaled value and returns the product, by one tensor."""
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    calls = [visit for visit in graph.visits if visit.name == path]
    return (
        bool(path)
        and len(tensors) == 1
        and len(calls) == 1
        and calls[0].outputs == (product,)
        and calls[0].inputs == (scaled,)
    )
