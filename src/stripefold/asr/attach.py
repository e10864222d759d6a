"""``attach``: put gates on the sites of a model. Everything is built and checked first, then swapped in."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from stripefold.asr.build import Chains, Place, build_gates
from stripefold.asr.config import Form, GateConfig, Init, Psi
from stripefold.asr.gate import DynamicGate, StaticGate
from stripefold.asr.select import Candidate, Selection, Where, select
from stripefold.asr.site import Site
from stripefold.errors import AttachError, FoldError
from stripefold.folding.probe import probe
from stripefold.folding.rule import rule_for
from stripefold.surgery.example import Example
from stripefold.surgery.foldable import Foldable
from stripefold.surgery.modules import (
    first_parameter,
    forget_compiled,
    is_sharded,
    replace_modules,
    unwrap_name,
    wrapped_inside,
)

_NEVER_CALLED = "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"


def attach(
    model: nn.Module,
    attention: str = "se",
    *,
    where: Where = "residual",
    form: Form = "static",
    repeats: int = 1,
    psi: Psi = None,
    init: Init = "paper",
    freeze: Sequence[str] = (),
    example: Example | None = None,
    attention_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Put a gate on every selected site of a copy of the model; the model given stays as it is.

    Takes the arguments of ``attach_`` and raises the same errors.
    """
    config = _config(attention, form, repeats, psi, init, freeze, attention_options)
    _check_root(model)
    try:
        copied = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise AttachError(
            f"{type(model).__name__} cannot be copied ({error}): use attach_, which works in place"
        ) from error
    return _attach(copied, where, config, example, in_place=False)


def attach_(
    model: nn.Module,
    attention: str = "se",
    *,
    where: Where = "residual",
    form: Form = "static",
    repeats: int = 1,
    psi: Psi = None,
    init: Init = "paper",
    freeze: Sequence[str] = (),
    example: Example | None = None,
    attention_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Put a gate on every selected site of the model, in place.

    Build the optimiser afterwards: the gates are new parameters.

    Args:
        model: any PyTorch model.
        attention: a name from the zoo; ``attention_names()`` lists them.
        where: "residual" (the last affine layer of every residual branch), "norm" (every normalisation with an affine
            part), "affine" (every layer with a rule), a glob or a list of globs over dotted paths, a predicate
            ``(name, module) -> bool``, or a mapping glob -> options for different gates at different places.
        form: "static" gates (ASR, they fold) or the ordinary "dynamic" attention; both may be attached, in two calls.
        repeats: static gates in a row at each site (the paper's delta).
        psi: start of psi; None is the attention's own (0.1 as in the reference code, 1 for "scale").
        init: "paper", or "identity": the model computes the same right after attaching.
        freeze: which of "psi" and "theta" do not train.
        example: an input for the trace behind "residual": tensor, tuple of arguments or dict of keyword arguments;
            inferred for timm, torchvision, transformers and our own networks.
        attention_options: keyword options of the attention, such as ``{"reduction": 8}``.

    Returns:
        The same model object.

    Raises:
        AttachError: nothing matched, gates are already there, a layer cannot be a site, a bad option. The model is then
            unchanged.
        TraceError: the model does not run on the example.

    Source: ASR, Huang et al. 2024, section 3; reference code ``ASRBatchNorm2d``.
    """
    config = _config(attention, form, repeats, psi, init, freeze, attention_options)
    _check_root(model)
    return _attach(model, where, config, example, in_place=True)


def _config(*values: Any) -> GateConfig:
    attention, form, repeats, psi, init, freeze, options = values
    return GateConfig(
        attention=attention, form=form, repeats=repeats, psi=psi, init=init, freeze=freeze, options=options or {}
    )


def _check_root(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise AttachError(f"attach needs an nn.Module, got {type(model).__name__}")
    wrapper = unwrap_name(model) or ("FSDP2 (fully_shard)" if is_sharded(model) else None)
    if wrapper is not None:
        raise AttachError(f"the model is wrapped in {wrapper}: attach to the bare model first, then wrap it")
    inside = wrapped_inside(model, "DistributedDataParallel")
    if inside is not None:
        raise AttachError(
            f"{inside!r} is wrapped in DistributedDataParallel, which would not synchronise new parameters: attach to "
            "the bare model first, then wrap it"
        )


def _attach(
    model: nn.Module, where: Where, config: GateConfig, example: Example | None, *, in_place: bool
) -> nn.Module:
    selection = select(model, where, example)
    _check_selection(selection, where)
    if in_place and any(
        candidate.name == "" and not isinstance(candidate.module, Site) for candidate in selection.chosen
    ):
        raise AttachError(
            "the model itself is the site and cannot be replaced in place: use model = attach(model, ...)"
        )
    chains = Chains()
    planned = [(candidate, _plan(candidate, config, chains)) for candidate in selection.chosen]
    _check_inside_blocks(model, planned)
    _warn(selection)
    forget_compiled(model)
    replacements: dict[nn.Module, nn.Module] = {}
    for candidate, gates in planned:
        site = candidate.module if isinstance(candidate.module, Site) else _new_site(candidate)
        site.gates.extend(gates)
        site.gates.train(site.training)
        if site is not candidate.module:
            site.take_hooks_()
            replacements[candidate.module] = site
    return replace_modules(model, replacements)


def _check_selection(selection: Selection, where: Where) -> None:
    exact = {where} if isinstance(where, str) else set(where) if isinstance(where, (Sequence, Mapping)) else set()
    for refused in selection.refused:
        if refused.name in exact:
            raise AttachError(f"cannot attach to {refused.name!r}: {refused.why}")
    if selection.chosen:
        return
    asked = "the predicate given as where" if callable(where) else f"where={where!r}"
    reasons = [f"  {refused.name}: {refused.why}" for refused in selection.refused]
    if reasons:
        listed = "\n".join([*reasons[:5], *(["  ..."] if len(reasons) > 5 else [])])
        raise AttachError(f"{asked} selects only layers that cannot be sites:\n{listed}")
    raise AttachError(
        f"{asked} selects no layer of this model. "
        + ("It has no residual branch: use where='norm', or look" if where == "residual" else "Look")
        + " at sites(model, where='affine') for what there is"
    )


def _plan(candidate: Candidate, defaults: GateConfig, chains: Chains) -> list[StaticGate | DynamicGate]:
    config = defaults.with_options(candidate.options, candidate.glob) if candidate.options else defaults
    module = candidate.module
    rule = rule_for(module)
    if rule is None:
        raise AttachError(f"cannot attach to {candidate.name!r}: {type(module).__name__} has no rule")
    if config.form == "dynamic" and rule.key == _NEVER_CALLED:
        raise AttachError(
            f"cannot attach to {candidate.name!r}: nn.MultiheadAttention reads its weight and never calls it, so a "
            "dynamic attention would have no effect. Use form='static', or leave it out with where=..."
        )
    if isinstance(module, Site):
        _check_second(candidate.name, module, config)
        module = module.base
    elif not isinstance(module, Foldable):  # a branch block will be the layer that the rule is for
        try:
            probe(module, rule)
        except FoldError as error:
            raise AttachError(f"cannot attach to {candidate.name!r}: {error}") from error
    place = Place(
        name=candidate.name, channels=rule.channels(module), axis=rule.axis, like=_like(candidate.name, module)
    )
    return build_gates(place, config, chains)


def _check_inside_blocks(
    model: nn.Module, planned: Sequence[tuple[Candidate, Sequence[StaticGate | DynamicGate]]]
) -> None:
    """A block whose branches depend on the input in different ways would never fold."""
    blocks = [name for name, m in model.named_modules() if isinstance(m, Foldable) and not isinstance(m, Site)]
    for candidate, gates in planned:
        around = next((name for name in blocks if candidate.name.startswith(f"{name}." if name else "branches.")), None)
        if around is not None and any(isinstance(gate, DynamicGate) for gate in gates):
            raise AttachError(
                f"cannot attach to {candidate.name!r}: dynamic attention inside the branch block {around!r} would keep "
                f"its branches from merging. Use form='static' there, or attach to {around!r} itself"
            )


def _check_second(name: str, site: Site, config: GateConfig) -> None:
    present = site.static_gates if config.form == "static" else site.dynamic_gates
    if present:
        several = (
            "use repeats= for several in a row" if config.form == "static" else "a site takes one dynamic attention"
        )
        raise AttachError(
            f"{name!r} already has a {config.form} gate ({present[0].attention.name}): {several}, or start over with "
            "detach_(model)"
        )


def _like(name: str, module: nn.Module) -> Tensor:
    like = first_parameter(module)
    if like is None:
        raise AttachError(f"cannot attach to {name!r}: {type(module).__name__} has no affine part")
    return like


def _new_site(candidate: Candidate) -> Site:
    rule = rule_for(candidate.module)
    assert rule is not None  # _plan has refused it otherwise
    return Site(candidate.module, rule)


def _warn(selection: Selection) -> None:
    for name, norm in selection.cancelled[:3]:
        more = f" (and {len(selection.cancelled) - 3} more such sites)" if len(selection.cancelled) > 3 else ""
        warnings.warn(
            f"the gate on {name!r} has no effect: {norm!r} right behind it normalises its scale away. Attach to "
            f"{norm!r} "
            f"instead{more}",
            stacklevel=4,
        )
