"""``fuse=True``: merge every BatchNorm that the trace shows directly behind a convolution or linear layer.

By call order, never by the order of definition: one consumer, one call of each, nothing in between. The convolution
keeps its type and gains a bias; what is left of the BatchNorm's place (nothing, or the activation it carried) stays
as a module, so that the model's own code runs on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripefold.algebra.merge import batchnorm_scale_shift, shift_bias
from stripefold.folding.refusal import altered
from stripefold.folding.rule import Rule, rule_for, type_key
from stripefold.surgery.example import Example
from stripefold.surgery.foldable import Foldable, FoldNote
from stripefold.surgery.modules import move_call_hooks, replace_modules, tensor_owners
from stripefold.surgery.trace import Trace, trace

_PLAIN_NORMS = frozenset(
    {
        *(f"torch.nn.modules.batchnorm.BatchNorm{n}d" for n in (1, 2, 3)),
        "torch.nn.modules.batchnorm.SyncBatchNorm",
        "torchvision.ops.misc.FrozenBatchNorm2d",
    }
)
# timm's BatchNorm with dropout and activation inside: these two stay where the norm was.
_NORMS_WITH_ACTIVATION = frozenset(
    f"timm.layers.norm_act.{name}" for name in ("BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d")
)


def fuse_(model: nn.Module, example: Example) -> list[FoldNote]:
    """Merge BatchNorms in place; a model without any is left alone.

    Args:
        model: a plain (folded) model; it is fused for eval mode, the running statistics become constants.
        example: input for the trace.

    Returns:
        One row per BatchNorm: merged into what, or kept and why.

    Raises:
        TraceError: the model does not run on the example.
    """
    modules = _outside_sites(model)
    norms = {name: module for name, module in modules.items() if is_batchnorm(module)}
    if not norms:
        return []
    graph = trace_for_fuse(model, example)
    ahead, reasons = _layers_ahead(graph, modules)
    owners = tensor_owners(model)
    notes: list[FoldNote] = []
    replacements: dict[nn.Module, nn.Module] = {}
    for name, norm in norms.items():
        layer_name = ahead.get(name)
        reason = reasons.get(name) or "no convolution or linear layer directly in front"
        if layer_name is not None:
            reason = _obstacle(graph, layer_name, name, modules, owners)
        if layer_name is None or reason:
            notes.append(FoldNote(name=name, kind=type(norm).__name__, folded=False, why=reason))
            continue
        _merge(modules[layer_name], norm)
        replacements[norm] = _remainder(norm)
        move_call_hooks(norm, replacements[norm])
        notes.append(FoldNote(name=name, kind=type(norm).__name__, folded=True, why=f"merged into {layer_name}"))
    replace_modules(model, replacements)
    return notes


def trace_for_fuse(model: nn.Module, example: Example) -> Trace:
    """The trace of a model, attached or folded, with BatchNorms among its layers.

    Raises:
        TraceError: the model does not run on the example.
    """
    return trace(model, example, is_layer=lambda module: rule_for(module) is not None or is_batchnorm(module))


def _outside_sites(model: nn.Module) -> dict[str, nn.Module]:
    """Dotted path -> module; a site that stays (dynamic attention) is one step, without the layer inside it."""
    found: dict[str, nn.Module] = {}
    inside = [f"{name}." if name else "" for name, module in model.named_modules() if isinstance(module, Foldable)]
    for name, module in model.named_modules():
        if not name.startswith(tuple(inside)):
            found[name] = module
    return found


def is_batchnorm(module: nn.Module) -> bool:
    """Whether this is a BatchNorm whose running statistics can become constants (by exact type)."""
    return type_key(type(module)) in _PLAIN_NORMS | _NORMS_WITH_ACTIVATION


def _layers_ahead(graph: Trace, modules: dict[str, nn.Module]) -> tuple[dict[str, str], dict[str, str]]:
    """BatchNorm -> the layer whose only consumer it is, and BatchNorm -> why a layer in front cannot take it."""
    ahead: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for name, module in modules.items():
        rule = rule_for(module)
        if rule is None or rule.norm or not rule.commutes or name not in graph.called:
            continue
        follower = graph.follower(name)
        if follower.name is not None:
            ahead[follower.name] = name
            continue
        for consumer in graph.consumers(name):
            reasons.setdefault(consumer, f"{name}: {follower.why}")
    return ahead, reasons


def _obstacle(
    graph: Trace, layer_name: str, norm_name: str, modules: dict[str, nn.Module], owners: dict[int, list[str]]
) -> str:
    """Why this pair cannot be merged, or an empty string."""
    layer, norm = modules[layer_name], modules[norm_name]
    rule = rule_for(layer)
    if rule is None or "bias" not in rule.output:
        return f"{layer_name} ({type(layer).__name__}) has no place for a bias"
    if getattr(norm, "running_mean", None) is None:
        return "it keeps no running statistics"
    for name, module in ((layer_name, layer), (norm_name, norm)):
        reason = altered(module)
        if reason is not None:
            return f"{name}: {reason}"
    for key, tensor in layer._parameters.items():
        if tensor is not None and len(owners.get(id(tensor), ())) > 1:
            return f"{layer_name}.{key} is tied to another module"
    produced, taken = graph.calls(layer_name)[0].outputs[0], graph.calls(norm_name)[0].inputs[0]
    if produced[rule.axis] != taken[1] or (rule.axis == -1 and len(taken) > 2):
        return f"the channels of {layer_name} lie on another axis than its own"
    return _overflow(layer, norm, rule)


@torch.no_grad()
def _overflow(layer: nn.Module, norm: nn.Module, rule: Rule) -> str:
    """Why the merged numbers would not be finite, or an empty string."""
    scale, shift = _scale_shift(norm)
    if not bool(scale.isfinite().all() and shift.isfinite().all()):
        return "its statistics or its affine part are not finite"
    bias = shift_bias(layer._parameters.get("bias"), scale, shift)
    dtype = getattr(layer, rule.required).dtype
    if rule.overflowing(layer, scale) is not None or float(bias.abs().max()) > torch.finfo(dtype).max:
        return f"the merged weights would overflow {str(dtype).removeprefix('torch.')}"
    return ""


@torch.no_grad()
def _merge(layer: nn.Module, norm: nn.Module) -> None:
    rule = rule_for(layer)
    assert rule is not None
    scale, shift = _scale_shift(norm)
    bias = layer._parameters.get("bias")
    for name, function in rule.output.items():
        tensor = getattr(layer, name, None)
        if tensor is not None and name != "bias":
            tensor.copy_(function(layer, tensor.double(), scale).to(tensor.dtype))
    merged = shift_bias(bias, scale, shift)
    if bias is not None:
        bias.copy_(merged.to(bias.dtype))
        return
    weight = layer._parameters["weight"]
    assert weight is not None
    layer._parameters["bias"] = nn.Parameter(merged.to(weight.dtype), requires_grad=weight.requires_grad)


def _scale_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    return batchnorm_scale_shift(
        norm.running_mean,  # type: ignore[arg-type]
        norm.running_var,  # type: ignore[arg-type]
        norm.eps,  # type: ignore[arg-type]
        norm.weight,  # type: ignore[arg-type]
        norm.bias,  # type: ignore[arg-type]
    )


def _remainder(norm: nn.Module) -> nn.Module:
    """What stays in the BatchNorm's place: nothing, or the dropout and activation it carried."""
    if type_key(type(norm)) in _PLAIN_NORMS:
        rest: nn.Module = nn.Identity()
    else:
        carried = [norm._modules.get(name) for name in ("drop", "act")]
        parts = [part for part in carried if part is not None and not isinstance(part, nn.Identity)]
        rest = nn.Sequential(*parts) if len(parts) > 1 else parts[0] if parts else nn.Identity()
    rest.train(norm.training)
    return rest
