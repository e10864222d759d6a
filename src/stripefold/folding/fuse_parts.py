"""What merging a BatchNorm needs, on whichever side it runs: the norms known, their numbers, what stays of them.

A *norm* here is every affine map of single channels with constant numbers: ResMLP's ``Affine`` is one as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stripefold.algebra.merge import batchnorm_scale_shift
from stripefold.errors import FoldError
from stripefold.folding.ledger import Ledger
from stripefold.folding.writable import why_unwritable
from stripefold.graph.trace import Trace
from stripefold.layers.names_transformers import FROZEN
from stripefold.layers.probe import Side as ProbedSide
from stripefold.layers.probe import check_affine, disproved
from stripefold.layers.refusal import altered
from stripefold.layers.rule import Rule, rule_for, type_key
from stripefold.layers.rules_transformers import keys
from stripefold.modules.foldable import Foldable
from stripefold.modules.held import why_held

_PLAIN_NORMS = frozenset(
    {
        *(f"torch.nn.modules.batchnorm.BatchNorm{n}d" for n in (1, 2, 3)),
        "torch.nn.modules.batchnorm.SyncBatchNorm",
        "torchvision.ops.misc.FrozenBatchNorm2d",
        *keys(FROZEN),
    }
)
# timm's BatchNorm with dropout and activation inside: these two stay where the norm was.
_NORMS_WITH_ACTIVATION = frozenset(
    f"timm.layers.norm_act.{name}" for name in ("BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d")
)
_MOBILEBERT = "transformers.models.mobilebert.modeling_mobilebert.NoNorm"


@dataclass(frozen=True)
class Setting:
    """A traced model whose norms are to be merged.

    Attributes:
        trace: of the model as it is now.
        modules: dotted path -> module, without what is inside sites.
        owners: ``modules.modules.tensor_owners`` of the model.
        ledger: what earlier steps have merged.
        held: ``modules.held.held_by_functions`` of the model.
        kept: ``modules.modes.kept_in_training`` of the model.
        adapted: ``adapters.under_adapters`` of the model.
    """

    trace: Trace
    modules: dict[str, nn.Module]
    owners: dict[int, list[str]]
    ledger: Ledger
    held: Mapping[nn.Module, str]
    kept: Collection[nn.Module]
    adapted: Mapping[nn.Module, str]


STAYS_IN_TRAINING = (
    "stays in training mode when the model is used for inference, and normalises by each batch's own statistics"
)


def normalises(module: nn.Module, kept: Collection[nn.Module]) -> bool:
    """Whether this is a BatchNorm of those ``kept`` in training mode, whose statistics are no constants."""
    rule = rule_for(module)
    return module in kept and rule is not None and rule.norm and rule.input_eval_only


def outside_sites(model: nn.Module) -> dict[str, nn.Module]:
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


def is_constant_affine(module: nn.Module) -> bool:
    """Whether this is a BatchNorm, or another affine map of every channel by itself with constant numbers."""
    return is_batchnorm(module) or _gain_and_offset(module) is not None


def _gain_and_offset(module: nn.Module) -> tuple[str, str] | None:
    """The two tensors of a module that is ``gain x + offset`` of every channel by its rule, or None."""
    rule = rule_for(module)
    if rule is None or not rule.elementwise(module) or len(rule.output) != 2:
        return None
    if rule.norm and type_key(type(module)) != _MOBILEBERT:  # which is called a norm and is none
        return None
    return rule.required, next(name for name in rule.output if name != rule.required)


def scale_shift(norm: nn.Module, ledger: Ledger) -> tuple[Tensor, Tensor]:
    """A BatchNorm in eval mode, or an affine map of channels, as ``scale x + shift``: two (C,) vectors, float64."""
    names = _gain_and_offset(norm) if not is_batchnorm(norm) else None
    held = (getattr(norm, name) for name in names or ("weight", "bias"))
    gamma, beta = (None if tensor is None else ledger.read(tensor).flatten() for tensor in held)
    if names is not None and gamma is not None and beta is not None:
        return gamma, beta
    eps = float(getattr(norm, "eps", 1e-5))  # transformers' frozen copies have it in their code
    return batchnorm_scale_shift(norm.running_mean, norm.running_var, eps, gamma, beta)  # type: ignore[arg-type]


def input_axis(norm: nn.Module, rank: int) -> int:
    """The channel axis of what such a module takes, from 0."""
    rule = rule_for(norm)
    return 1 if is_batchnorm(norm) or rule is None else rule.axis % rank


def remainder(norm: nn.Module) -> nn.Module:
    """What stays in a BatchNorm's place: nothing, or the dropout and activation it carried."""
    if type_key(type(norm)) not in _NORMS_WITH_ACTIVATION:
        rest: nn.Module = nn.Identity()
    else:
        carried = [norm._modules.get(name) for name in ("drop", "act")]
        parts = [part for part in carried if part is not None and not isinstance(part, nn.Identity)]
        rest = nn.Sequential(*parts) if len(parts) > 1 else parts[0] if parts else nn.Identity()
    rest.train(norm.training)
    return rest


def no_constants(setting: Setting, norm_name: str) -> str | None:
    """Why a norm is no affine map with known numbers, or None."""
    norm = setting.modules[norm_name]
    if is_batchnorm(norm) and getattr(norm, "running_mean", None) is None:
        return "it keeps no running statistics"
    if normalises(norm, setting.kept):
        return f"it {STAYS_IN_TRAINING}"
    reason = setting.adapted.get(norm) or altered(norm) or why_held(norm, setting.held)
    if reason is not None:
        return f"{norm_name}: {reason}"
    if norm_name in setting.trace.read:
        return f"a tensor of {norm_name} is read outside its call"
    try:
        check_affine(norm, lambda twin: scale_shift(twin, Ledger()), input_axis)
    except FoldError as error:
        return str(error)
    if not all(bool(tensor.isfinite().all()) for tensor in scale_shift(norm, setting.ledger)):
        return "its statistics or its affine part are not finite"
    return None


def unfit(setting: Setting, layer_name: str, *sides: ProbedSide) -> str | None:
    """Why a layer cannot take up any norm, or None.

    Args:
        setting: the model.
        layer_name: path of the layer.
        sides: what its rule must hold for.
    """
    layer, rule = setting.modules[layer_name], rule_for(setting.modules[layer_name])
    assert rule is not None  # it is a layer of the trace
    reason = setting.adapted.get(layer) or altered(layer) or why_unwritable(layer) or disproved(layer, rule, *sides)
    if reason is not None:
        return f"{layer_name}: {reason}"
    for key, tensor in (*layer._parameters.items(), *layer._buffers.items()):
        if tensor is not None and len(setting.owners.get(id(tensor), ())) > 1:
            return f"{layer_name}.{key} is tied to another module"
    if any(call.implicit for call in setting.trace.calls(layer_name)):
        return f"the weights of {layer_name} are used without calling it"
    if layer_name in setting.trace.read:
        return f"a tensor of {layer_name} is read outside its call"
    return None


def misfit(layer: nn.Module, rule: Rule, tensors: Mapping[str, Tensor]) -> str | None:
    """Why merged numbers (attribute -> float64 tensor) do not fit the layer's dtype, or None.

    Too large, or so small that rounding them loses more than digits: a LayerScale of 1e-5 in float16 does.
    """
    dtype = getattr(layer, rule.required).dtype
    limits, name = torch.finfo(dtype), str(dtype).removeprefix("torch.")
    for key, tensor in tensors.items():
        if tensor.numel() and not float(tensor.abs().max()) <= limits.max:
            return f"the merged weights would overflow {name}"
        if key != "bias" and float((tensor.to(dtype).double() - tensor).norm()) > limits.eps * float(tensor.norm()):
            return f"the merged weights would underflow {name}"
    return None
