"""The layers behind a shift of channels: all that take the shifted value, and their numbers with the shift in them.

The shift of an input does not commute with zeros: a convolution's border would see the shift where it saw 0. So every
layer that takes the value must be linear, unpadded, or padded with its own content.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from stripefold.folding.ledger import Ledger
from stripefold.graph.channels import axis_after
from stripefold.graph.graph import Graph, Node
from stripefold.graph.operations import RESHAPES
from stripefold.graph.scale_paths import NONE
from stripefold.graph.shift_paths import averages_what_is_there
from stripefold.layers.rule import Along, rule_for, type_key

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


def takers(graph: Graph, source: int, channel_axis: int, *, neutral: Mapping[int, int] = NONE) -> list[str] | str:
    """The layers that take a value with nothing but moved axes and means in between; or what stands there.

    Args:
        graph: of a trace.
        source: the node.
        channel_axis: its channel axis, from 0.
        neutral: node -> the operand that it passes on unchanged by now.
    """
    found: dict[str, None] = {}
    todo = [(source, channel_axis)]
    while todo:
        index, axis = todo.pop(0)
        seen = graph.seen_outside(index)
        if seen is not None or not graph.consumers[index]:
            return f"its output {'is not used' if seen is None else seen.rstrip(',')}"
        for user in sorted(set(graph.consumers[index])):
            node = graph.nodes[user]
            if node.kind == "layer":
                reason = _not_taking(graph, index, axis, node)
                if reason is not None:
                    return reason
                found[node.name] = None
                continue
            after = axis if neutral.get(user) == index else _axis_after(graph, index, user, axis)
            if after is None:
                return f"{node.name!r} in {repr(node.where) if node.where else 'the model itself'} stands there"
            todo.append((user, after))
    return list(found)


def _axis_after(graph: Graph, source: int, user: int, axis: int) -> int | None:
    """The channel axis behind an operation that commutes with every scale and shift of the channels, else None.

    Such are moved axes, and means in which no padded zeros take part.
    """
    node = graph.nodes[user]
    commutes = node.name in _MOVES | {"mean", "_adaptive_avg_pool2d"} or averages_what_is_there(node)
    return axis_after(graph, source, user, axis) if commutes else None


def _not_taking(graph: Graph, index: int, axis: int, node: Node) -> str | None:
    """Why a layer does not simply take this value as its input, or None."""
    if sum(call.name == node.name for call in graph.calls) != 1:
        return f"{node.name} is called several times"
    if len([i for i in set(node.inputs) if graph.nodes[i].role != "constant"]) != 1:
        return f"{node.name} takes other inputs too"
    unlike = graph.unlike_its_type(node.name, taking=True)
    if unlike is not None:
        return f"{node.name}: {unlike}"
    last = len(graph.nodes[index].shape) - 1
    convolves = "convolution" in node.inner
    if axis != (1 if convolves else last):
        return f"the channels reach {node.name} on another axis than that of its input"
    return None


def no_input_shift(layer: nn.Module) -> str | None:
    """Why a layer cannot take a shift of its input, or None."""
    key, rule = type_key(type(layer)), rule_for(layer)
    if key not in _LINEAR | _CONVOLUTIONS:
        return f"{type(layer).__name__} takes no scale and shift of its input"
    if rule is None or "weight" not in (rule.input or {}) or not isinstance(rule.output.get("weight"), Along):
        return f"the rule for {type(layer).__name__} does not name the axis of its weight"
    if key in _LINEAR:
        return None
    padding, kernel = layer.padding, layer.kernel_size
    padded = padding == "same" and kernel != (1,) * len(kernel) if isinstance(padding, str) else any(padding)  # type: ignore[arg-type]
    if padded and layer.padding_mode == "zeros":
        return "its zero padding would have to become the shift"
    return None


def bias_with_input_shift(layer: nn.Module, shift: Tensor, ledger: Ledger) -> Tensor:
    """``b + W t``: the bias of a layer whose input is shifted by t (C_in,), float64; ``no_input_shift`` has agreed."""
    rule = rule_for(layer)
    assert rule is not None
    assert rule.input is not None
    own, bias, function = layer._parameters["weight"], layer._parameters.get("bias"), rule.output["weight"]
    assert own is not None
    assert isinstance(function, Along)
    shifted = rule.input["weight"](layer, ledger.read(own), shift)
    constant = shifted.movedim(function.dim, 0).flatten(1).sum(1)
    return constant if bias is None else ledger.read(bias) + constant
