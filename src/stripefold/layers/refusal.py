"""Why a layer cannot take a scale, in words that say what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from stripefold.layers.rule import Rule, rule_for, type_key
from stripefold.modules.foldable import Foldable

__all__ = ["altered", "refusal", "refusal_in", "refusal_under", "refused_by_rule", "tied_to"]

_QUANTIZED_ROOMS = ("torch.ao.nn.", "torch.nn.quantized", "torch.nn.intrinsic", "torchao.", "bitsandbytes.")
# Attributes that hook-based re-parametrizations of torch.nn.utils leave behind, and what takes each of them away.
_HOOK_TRACES = (
    ("_g", "weight_norm", "torch.nn.utils.remove_weight_norm(layer)"),
    ("_mask", "prune", "torch.nn.utils.prune.remove(layer, {name!r})"),
    ("_u", "spectral_norm", "torch.nn.utils.remove_spectral_norm(layer)"),
    ("_orig", "a hook", "its own removal function"),
)
_STANDARDISED = (
    "its weight is standardised before use and it has no gain, so nothing in it carries a scale: "
    "gate the normalisation behind it"
)
_GLOBAL_RESPONSE = "its input is added to its output unscaled: gate the linear layer behind it"
# Types whose refusal has a better reason than "no rule".
_KNOWN = {
    "timm.layers.std_conv.StdConv2d": _STANDARDISED,
    "timm.layers.std_conv.StdConv2dSame": _STANDARDISED,
    "transformers.models.bit.modeling_bit.WeightStandardizedConv2d": _STANDARDISED,
    "timm.layers.grn.GlobalResponseNorm": _GLOBAL_RESPONSE,
    "transformers.models.convnextv2.modeling_convnextv2.ConvNextV2GRN": _GLOBAL_RESPONSE,
    "timm.models.hgnet.LearnableAffineBlock": "it has one number for all channels: gate the layer before it",
    "timm.layers.split_batchnorm.SplitBatchNorm2d": "its auxiliary normalisations have gains of their own: "
    "convert it back to a BatchNorm2d",
}
_NATURAL_LIKE = {
    nn.modules.batchnorm._BatchNorm: "nn.BatchNorm2d",
    nn.LayerNorm: "nn.LayerNorm",
    nn.GroupNorm: "nn.GroupNorm",
    nn.Linear: "nn.Linear",
    nn.Conv1d: "nn.Conv1d",
    nn.Conv2d: "nn.Conv2d",
    nn.Conv3d: "nn.Conv3d",
}


def refusal(layer: nn.Module) -> str | None:
    """Why this layer, taken by itself, cannot be a site; None where nothing speaks against it.

    The probe (``layers.probe``) is the further question: whether its rule holds on it.
    """
    rule = rule_for(layer)
    return altered(layer) or (_no_rule(layer) if rule is None else refused_by_rule(layer, rule))


def refusal_under(layer: nn.Module, rule: Rule) -> str | None:
    """As ``refusal``, for a layer whose rule is known: its class may have changed since (SyncBatchNorm)."""
    return altered(layer) or refused_by_rule(layer, rule)


def refused_by_rule(layer: nn.Module, rule: Rule) -> str | None:
    """What its rule alone says against a layer that is what its type says; or None."""
    return rule.refuse(layer) or _no_affine_part(layer, rule)


def altered(layer: nn.Module) -> str | None:
    """Why a layer does not compute what its type says with the parameters it has, or None."""
    reasons = (question(layer) for question in (_not_ready, _reparametrized, _quantized, _complex, _patched, _hooked))
    return next((reason for reason in reasons if reason is not None), None)


def refusal_in(name: str, layer: nn.Module, owners: Mapping[int, list[str]]) -> str | None:
    """Why this layer cannot be a site of its model: its own reasons, and tensors it shares.

    Args:
        name: the first of the layer's paths in the model.
        layer: the layer.
        owners: ``modules.modules.tensor_owners(model)``, computed once by the caller.
    """
    rule = rule_for(layer)
    return refusal(layer) or (None if rule is None else tied_to(layer, rule.output, name, owners))


def _not_ready(layer: nn.Module) -> str | None:
    uninitialised = any(isinstance(p, UninitializedParameter) for p in layer._parameters.values())
    if uninitialised or isinstance(layer, LazyModuleMixin):
        return "it is lazy and its parameters have no shape yet: run the model once on an example before attaching"
    if isinstance(layer, torch.jit.ScriptModule):
        return "it is compiled by torch.jit: attach to the Python model and script or trace that afterwards"
    return None


def _reparametrized(layer: nn.Module) -> str | None:
    if parametrize.is_parametrized(layer):
        names = ", ".join(repr(name) for name in getattr(layer, "parametrizations", {}))
        return (
            f"it is parametrized ({names}): make the parametrization permanent first with "
            f"torch.nn.utils.parametrize.remove_parametrizations(layer, {names.split(', ')[0]})"
        )
    own = layer._parameters.keys() | layer._buffers.keys()
    for name in ("weight", "bias"):
        if name in own:
            continue
        for ending, kind, remedy in _HOOK_TRACES:
            if f"{name}{ending}" in own and isinstance(getattr(layer, name, None), Tensor):
                return (
                    f"{kind} recomputes its {name!r} before every call ({f'{name}{ending}'!r} is there in its place): "
                    f"make it permanent first with {remedy.format(name=name)}"
                )
    return None


def _quantized(layer: nn.Module) -> str | None:
    key = type_key(type(layer))
    weight = getattr(layer, "weight", None)
    is_integer = isinstance(weight, Tensor) and not (weight.is_floating_point() or weight.is_complex())
    room = type(weight.data).__module__ if isinstance(weight, Tensor) else ""
    if key.startswith(_QUANTIZED_ROOMS) or is_integer or room.startswith(_QUANTIZED_ROOMS):
        return f"it is quantized ({type(layer).__name__}): attach, train and fold in floating point, then quantize"
    return None


def _complex(layer: nn.Module) -> str | None:
    for key, tensor in (*layer._parameters.items(), *layer._buffers.items()):
        if tensor is not None and tensor.is_complex():
            kind = f"its {key!r} is complex ({tensor.dtype}), and only real numbers are folded"
            return f"{kind}: leave it out with where=..."
    return None


def _patched(layer: nn.Module) -> str | None:
    if "forward" in layer.__dict__:
        return (
            "its forward is replaced on the instance, so that its type does not say what it computes: "
            "restore it (del layer.forward) before attaching"
        )
    return None


def _hooked(layer: nn.Module) -> str | None:
    """Hooks on the layer itself are seen in a run; what they do inside it is not."""
    inside = [
        name for name, module in layer.named_modules() if name and (module._forward_hooks or module._forward_pre_hooks)
    ]
    return f"hooks run inside it, on {inside[0]!r}: remove them" if inside else None


def _no_rule(layer: nn.Module) -> str:
    known = _KNOWN.get(type_key(type(layer)))
    if known is not None:
        return known
    name = type(layer).__name__
    if not layer._parameters and next(iter(layer.children()), None) is not None:
        return f"{name} is a container: gate one of the layers in it"
    if not layer._parameters and not layer._buffers:
        return f"{name} has no affine part: nothing in it can carry a scale"
    like = next((text for base, text in _NATURAL_LIKE.items() if isinstance(layer, base)), None)
    how = f"like={like}" if like else "rule=Rule(...)"
    caution = f", if it computes what {like} computes" if like else ""
    return (
        f"no rule for {type_key(type(layer))} (exact type): "
        f"register one with register_rule({name}, {how}){caution}, or leave it out with where=..."
    )


def _no_affine_part(layer: nn.Module, rule: Rule) -> str | None:
    name = rule.required
    if isinstance(layer, Foldable):  # a branch block: it folds to the layer that the rule is for
        return None
    if getattr(layer, name, None) is None:
        flag = "elementwise_affine=True" if hasattr(layer, "elementwise_affine") else "affine=True"
        return f"it has no affine part ({name!r} is None): build it with {flag}, or gate another layer"
    if name not in layer._parameters and name not in layer._buffers:
        return (
            f"its {name!r} is not one of its own parameters (computed, flattened or assigned from outside): "
            "attach before wrapping or flattening the model"
        )
    return None


def tied_to(layer: nn.Module, keys: Iterable[str], name: str, owners: Mapping[int, list[str]]) -> str | None:
    """Which other places hold a tensor that is to be written, in words, or None.

    Args:
        layer: the layer.
        keys: its tensors in question.
        name: the first of its paths in the model.
        owners: ``modules.modules.tensor_owners(model)``.
    """
    for attribute in keys:
        tensor = layer._parameters.get(attribute, layer._buffers.get(attribute))
        own = f"{name}.{attribute}" if name else attribute
        others = [path for path in owners.get(id(tensor), ()) if path != own]
        if others:
            return (
                f"its {attribute!r} is tied to {', '.join(repr(path) for path in others)}: scaling one would scale the "
                f"other. Give {name!r} a parameter of its own (nn.Parameter(layer.{attribute}.detach().clone())), "
                "or leave it out with where=..."
            )
    return None
