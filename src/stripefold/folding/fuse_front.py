"""BatchNorms directly in front of convolutions and linear layers: ``W (s x + t) + b = (W diag(s)) x + (b + W t)``.

The scale commutes with every padding, the shift does not commute with zeros: such a convolution's border would see t
where it saw 0. So every layer that takes the norm's output must be linear, unpadded, or padded with its own content.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripefold.folding.fuse_parts import Setting, input_axis, misfit, no_constants, remainder, scale_shift, unfit
from stripefold.folding.ledger import Ledger
from stripefold.folding.rule import Along, Rule, rule_for, type_key
from stripefold.surgery.channels import axis_after
from stripefold.surgery.foldable import FoldNote
from stripefold.surgery.graph import Graph, Node
from stripefold.surgery.operations import RESHAPES

_LINEAR = frozenset(
    {
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.linear.NonDynamicallyQuantizableLinear",
        "timm.layers.linear.Linear",
        "transformers.pytorch_utils.Conv1D",
    }
)
_CONVOLUTIONS = frozenset(f"torch.nn.modules.conv.Conv{n}d" for n in (1, 2, 3))
_MOVES = RESHAPES | {"permute", "transpose", "t", "contiguous", "detach", "alias"}


def merge_in_front_(setting: Setting, names: list[str]) -> tuple[dict[nn.Module, nn.Module], dict[str, FoldNote]]:
    """Merge the named BatchNorms into the layers behind them.

    Returns:
        What stays in the places of those merged, and one row for each name.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    notes: dict[str, FoldNote] = {}
    for name in names:
        norm, kind = setting.modules[name], type(setting.modules[name]).__name__
        found = _merged(setting, name)
        if isinstance(found, str):
            notes[name] = FoldNote(name=name, kind=kind, folded=False, why=found)
            continue
        for layer_name, tensors in found.items():
            setting.ledger.write_(setting.modules[layer_name], tensors)
        replacements[norm] = nn.Identity().train(norm.training)
        notes[name] = FoldNote(name=name, kind=kind, folded=True, why=f"merged into {', '.join(found)} behind it")
    return replacements, notes


@torch.no_grad()
def _merged(setting: Setting, name: str) -> dict[str, dict[str, Tensor]] | str:
    """Layer -> its tensors with the norm in them, float64; or why the norm stays."""
    norm, graph = setting.modules[name], setting.trace.graph
    results = graph.results(name)
    reason = no_constants(setting, name)
    if reason is not None:
        return reason
    if not isinstance(remainder(norm), nn.Identity):
        return "the activation it carries stands in front of what follows"
    if len(results) != 1:
        return f"called {len(results)} times"
    takers = _takers(graph, results[0], input_axis(norm, len(graph.nodes[results[0]].shape)))
    if isinstance(takers, str):
        return takers
    merged: dict[str, dict[str, Tensor]] = {}
    for layer_name in takers:
        layer = setting.modules.get(layer_name)
        reason = "a part of a site" if layer is None else unfit(setting, layer_name) or _no_input_side(layer)
        if reason is not None or layer is None:
            return f"{layer_name}: {reason}"
        tensors = _with_norm(layer, norm, setting.ledger)
        if isinstance(tensors, str):
            return f"{layer_name}: {tensors}"
        merged[layer_name] = tensors
    return merged


def _takers(graph: Graph, source: int, channel_axis: int) -> list[str] | str:
    """The layers that take a norm's output with nothing but moved axes and means in between; or what stands there."""
    found: dict[str, None] = {}
    todo = [(source, channel_axis)]
    while todo:
        index, axis = todo.pop(0)
        if index in graph.outputs or not graph.consumers[index]:
            return "its output is returned by the model"
        for user in sorted(set(graph.consumers[index])):
            node = graph.nodes[user]
            if node.kind == "layer":
                reason = _not_taking(graph, index, axis, node)
                if reason is not None:
                    return reason
                found[node.name] = None
                continue
            after = _axis_after(graph.nodes[index], node, axis)
            if after is None:
                return f"{node.name!r} in {repr(node.where) if node.where else 'the model itself'} stands there"
            todo.append((user, after))
    return list(found)


def _axis_after(before: Node, node: Node, axis: int) -> int | None:
    """The channel axis behind an operation that commutes with every scale and shift of the channels, else None.

    Such are moved axes, and means in which no padded zeros take part.
    """
    if node.name == "mean":
        rank, given = len(before.shape), node.arguments[0] if node.arguments else None
        dims = {dim % rank for dim in given} if isinstance(given, (list, tuple)) else set(range(rank))
        if axis in dims:
            return None
        return axis if len(node.shape) == rank else axis - sum(dim < axis for dim in dims)
    commutes = node.name in _MOVES or node.name == "_adaptive_avg_pool2d" or _is_mean_of_what_is_there(node)
    return axis_after(before, node, axis) if commutes else None


def _is_mean_of_what_is_there(node: Node) -> bool:
    """Whether a pooling node averages, and counts no padding."""
    if node.name not in ("avg_pool2d", "avg_pool3d"):
        return False
    padding = node.arguments[2] if len(node.arguments) > 2 else 0
    padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    counted = node.arguments[4] if len(node.arguments) > 4 else True
    return not (padded and counted)


def _not_taking(graph: Graph, index: int, axis: int, node: Node) -> str | None:
    """Why a layer does not simply take this value as its input, or None."""
    if sum(call.name == node.name for call in graph.calls) != 1:
        return f"{node.name} is called several times"
    if len([i for i in set(node.inputs) if graph.nodes[i].role != "constant"]) != 1:
        return f"{node.name} takes other inputs too"
    last = len(graph.nodes[index].shape) - 1
    convolves = "convolution" in node.inner
    if axis != (1 if convolves else last):
        return f"the channels reach {node.name} on another axis than that of its input"
    return None


def _no_input_side(layer: nn.Module) -> str | None:
    """Why a layer cannot take a scale and a shift of its input, or None."""
    key = type_key(type(layer))
    if key in _LINEAR:
        return None
    if key not in _CONVOLUTIONS:
        return f"{type(layer).__name__} takes no scale and shift of its input"
    padding, kernel = layer.padding, layer.kernel_size
    padded = padding == "same" and kernel != (1,) * len(kernel) if isinstance(padding, str) else any(padding)  # type: ignore[arg-type]
    if padded and layer.padding_mode == "zeros":
        return "its zero padding would have to become the norm's shift"
    return None


def _with_norm(layer: nn.Module, norm: nn.Module, ledger: Ledger) -> dict[str, Tensor] | str:
    """The layer's weight and bias with its input scaled and shifted, float64; or why they do not fit its dtype."""
    rule = rule_for(layer)
    assert rule is not None
    assert rule.input is not None
    own, bias = layer._parameters["weight"], layer._parameters.get("bias")
    assert own is not None
    scale, shift = scale_shift(norm, ledger)
    weight = ledger.read(own)
    shifted = rule.input["weight"](layer, weight, shift)
    constant = shifted.movedim(_output_axis(rule), 0).flatten(1).sum(1)
    merged = {
        "weight": rule.input["weight"](layer, weight, scale),
        "bias": constant if bias is None else ledger.read(bias) + constant,
    }
    return misfit(layer, rule, merged) or merged


def _output_axis(rule: Rule) -> int:
    function = rule.output["weight"]
    assert isinstance(function, Along)
    return function.dim
