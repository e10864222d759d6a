"""Where the bias goes that folding gives to a layer without one: a branch block's, or that of a gate that adds.

Behind it there is usually a BatchNorm: ``B(K x + b)`` is ``B(K x)`` with its running mean less by b, in eval mode, and
in training mode the bias makes no difference. So the folded model keeps the stock keys. Found by the trace, as every
question of what follows what; where no BatchNorm follows, the bias is a new key, and is announced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stripefold.errors import TraceError
from stripefold.folding.fuse_parts import is_batchnorm
from stripefold.folding.writable import why_not_writable
from stripefold.graph.trace import Trace, trace
from stripefold.layers.refusal import altered
from stripefold.layers.rule import rule_for
from stripefold.modules.example import Example, infer_example
from stripefold.modules.foldable import Foldable, FoldNote
from stripefold.modules.modules import tensor_owners


@dataclass(frozen=True, kw_only=True)
class BiasHome:
    """Where one bias goes.

    Attributes:
        layer: path of the folded layer.
        norm: path of the BatchNorm whose running mean takes the bias, or None.
        why: why there is none.
    """

    layer: str
    norm: str | None = None
    why: str = ""

    def __str__(self) -> str:
        if self.norm is not None:
            return f"its bias into the running mean of {self.norm}"
        return f"new key {_key(self.layer)!r}: {self.why}"


def plan_biases(
    model: nn.Module, found: Mapping[str, Foldable], notes: Sequence[FoldNote], example: Example | None
) -> tuple[dict[str, BiasHome], tuple[str, ...]]:
    """Find a home for the bias of every module of ours that gains one; nothing is changed.

    Args:
        model: before folding.
        found: dotted path -> what folds.
        notes: of ``check_fold``; what they say stays stands between a layer and what follows it.
        example: input for the trace; inferred where the model declares one.

    Returns:
        The homes by the modules' paths, and what did not run on the example.

    Raises:
        TraceError: the model does not run on the example given.
    """
    gaining = [name for name, module in found.items() if module.gains_bias]
    if not gaining:
        return {}, ()
    graph = _trace(model, example)
    modules, owners = dict(model.named_modules()), tensor_owners(model)
    staying = {note.name for note in notes if not note.folded}
    homes: dict[str, BiasHome] = {}
    for name in gaining:
        outer = outermost(name, found)
        behind = next((site for site in (name, outer) if site in staying), None)
        if behind is not None:  # the site of the dynamic attention stays, and the layer inside it
            layer = (f"{name}.base" if name else "base") if name == outer else name
            homes[name] = BiasHome(layer=layer, why=f"the dynamic attention on {behind!r} stands behind it")
        elif graph is None:
            homes[name] = BiasHome(layer=outer, why="without an example= no trace shows which BatchNorm follows")
        else:
            norm, why = _norm_behind(graph, name if name in graph.called else outer, modules, owners)
            path = f"{norm}.base" if norm in staying else norm
            homes[name] = BiasHome(layer=outer, norm=path, why=why)
    return homes, () if graph is None else graph.unseen


def place_biases_(plain: nn.Module, homes: Mapping[str, BiasHome]) -> tuple[str, ...]:
    """Move the biases of a folded model, still in float64, to their homes; returns the keys that are new."""
    new: list[str] = []
    for home in homes.values():
        layer = plain.get_submodule(home.layer)
        bias = layer._parameters.get("bias")
        assert bias is not None  # that is what gains_bias says
        mean: Any = None if home.norm is None else plain.get_submodule(home.norm).running_mean
        moved = None if mean is None else mean.double() - bias.detach().double()
        if moved is None or not bool(moved.to(mean.dtype).isfinite().all()):  # too large for the statistics' dtype
            new.append(_key(home.layer))
            layer._parameters["bias"] = nn.Parameter(bias.to(_dtype(layer)), bias.requires_grad)
            continue
        with torch.no_grad():
            mean.copy_(moved)
        layer._parameters["bias"] = None
    return tuple(new)


def _dtype(layer: nn.Module) -> torch.dtype:
    weight = layer._parameters["weight"]
    assert weight is not None  # what gains a bias is a convolution or another layer with one
    return weight.dtype


def outermost(name: str, found: Mapping[str, Foldable]) -> str:
    """The path of the outermost module of ours around (or at) a path."""
    return next(path for path in found if not path or name == path or name.startswith(f"{path}."))


def _key(layer: str) -> str:
    return f"{layer}.bias" if layer else "bias"


def _trace(model: nn.Module, example: Example | None) -> Trace | None:
    inferred = infer_example(model) if example is None else example
    if inferred is None:
        return None
    try:
        return trace(model, inferred, is_layer=lambda module: rule_for(module) is not None or is_batchnorm(module))
    except TraceError:
        if example is not None:
            raise
        return None


def _norm_behind(
    graph: Trace, name: str, modules: Mapping[str, nn.Module], owners: Mapping[int, list[str]]
) -> tuple[str | None, str]:
    """The BatchNorm that alone takes a layer's output, or None and the reason."""
    follower = graph.follower(name)
    if follower.name is None:
        return None, f"no BatchNorm alone takes its output ({follower.why})"
    holder = modules[follower.name]
    norm = (holder._modules.get("base") or holder) if isinstance(holder, Foldable) else holder
    kind = f"{follower.name} ({type(norm).__name__}) behind it"
    mean = getattr(norm, "running_mean", None)
    if not is_batchnorm(norm) or mean is None:
        return None, f"{kind} keeps no running mean"
    if altered(norm) is not None or len(owners.get(id(mean), ())) > 1:
        return None, f"{kind} is altered, or shares its running mean"
    unwritable = why_not_writable(mean)
    if unwritable is not None:
        return None, f"the running mean of {kind} {unwritable}"
    if follower.name in graph.read:
        return None, f"a tensor of {kind} is read outside its call"
    taken, produced = graph.calls(follower.name)[0].inputs[0], graph.calls(name)[0].outputs[0]
    rule = rule_for(modules[name])
    assert rule is not None  # the trace knows no other layers
    if taken[1] != produced[1] or rule.axis % len(produced) != 1 or follower.axis != 1:
        return None, f"the channels reach {kind} on another axis"
    return follower.name, ""
