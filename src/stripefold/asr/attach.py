"""``attach``: put gates on the sites of a model. Everything is built and checked first, then swapped in."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from stripefold.asr.build import Chains
from stripefold.asr.config import GateConfig, GateForm, GateInit, Psi, PsiStart
from stripefold.asr.plan import Planned, as_listed, check_inside_blocks, plan_gates
from stripefold.asr.select import SiteSelection, WhereWithOptions, select
from stripefold.asr.select_positions import EVERYWHERE, select_positions
from stripefold.asr.site import Site
from stripefold.attention.registry import attention_names
from stripefold.errors import AttachError
from stripefold.folding.attached_steps import check_same_steps, steps_of
from stripefold.graph.positions import PositionPlace
from stripefold.modules.all_or_nothing import AllOrNothing
from stripefold.modules.example import Example
from stripefold.modules.modules import first_parameter, forget_compiled, replace_modules
from stripefold.modules.root import check_bare, copy_of
from stripefold.modules.thread_state import Interruptible


def attach(
    model: nn.Module,
    attention: str = "se",
    *,
    where: WhereWithOptions = "residual",
    form: GateForm = "static",
    repeats: int = 1,
    psi: Psi = None,
    init: GateInit = "paper",
    freeze: Sequence[str] = (),
    start: PsiStart = "live",
    example: Example | None = None,
    attention_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Put a gate on every selected site of a copy of the model; the model given stays as it is.

    Takes the arguments of ``attach_`` and raises the same errors.
    """
    with Interruptible():
        config = _config(attention, form, repeats, psi, init, freeze, start, attention_options)
        return _attach(_copied(model), where, config, _Known(example), in_place=False)


def attach_(
    model: nn.Module,
    attention: str = "se",
    *,
    where: WhereWithOptions = "residual",
    form: GateForm = "static",
    repeats: int = 1,
    psi: Psi = None,
    init: GateInit = "paper",
    freeze: Sequence[str] = (),
    start: PsiStart = "live",
    example: Example | None = None,
    attention_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Put a gate on every selected site of the model, in place.

    Build the optimiser afterwards: the gates are new parameters.

    Args:
        model: any PyTorch model.
        attention: a name from the zoo; ``attention_names()`` lists them.
        where: "residual" (the last affine layer of every residual branch), "norm" (every normalisation with an affine
            part), "affine" (every layer with a rule), "positions" (for attentions over positions: every place where
            such a gate folds), a glob or a list of globs over dotted paths, a predicate ``(name, module) -> bool``, or
            a mapping glob -> options for different gates at different places.
        form: "static" gates (ASR, they fold) or the ordinary "dynamic" attention; both may be attached, in two calls.
        repeats: static gates in a row at each site (the paper's delta).
        psi: start of psi; None is the attention's own (0.1 as in the reference code, 1 for "scale", 0 for "shift").
        init: "paper", or "identity": the model computes the same right after attaching.
        freeze: which of "psi" and "theta" do not train.
        start: "live", or "reference": hidden units as they are drawn. A unit that psi does not reach at the start never
            learns; the reference code has such units, and whole gates of them. "live" sees to it that every gate has
            some that learn.
        example: an input for the trace behind "residual" and "positions" (whose gates are for its resolution): tensor,
            tuple of arguments or dict of keyword arguments; inferred for timm, torchvision, transformers and our own
            networks.
        attention_options: keyword options of the attention, such as ``{"reduction": 8}``.

    Returns:
        The same model object.

    Raises:
        AttachError: nothing matched, gates are already there, a layer cannot be a site, a bad option, or the model's
            code takes another path where its layers carry gates. The model is then unchanged.
        TraceError: the model does not run on the example.

    Source: ASR, Huang et al. 2024, section 3; reference code ``ASRBatchNorm2d``.
    """
    with Interruptible():
        config = _config(attention, form, repeats, psi, init, freeze, start, attention_options)
        _check_bare(model)
        return _attach(model, where, config, _Known(example), in_place=True)


def _config(*values: Any) -> GateConfig:
    attention, form, repeats, psi, init, freeze, start, options = values
    return GateConfig(
        attention=attention,
        form=form,
        repeats=repeats,
        psi=psi,
        init=init,
        freeze=freeze,
        start=start,
        options=options or {},
    )


def _copied(model: nn.Module) -> nn.Module:
    _check_bare(model)
    return copy_of(model, "attach_", AttachError)


def _check_bare(model: nn.Module) -> None:
    check_bare(model, "attach", "attach to the bare model", AttachError)


def attach_at(
    model: nn.Module, where: Mapping[str, Mapping[str, Any]], form: GateForm, places: Mapping[str, PositionPlace]
) -> nn.Module:
    """As ``attach`` with a mapping, in its order, for places of gates over positions that are known (no trace is made).

    Raises:
        AttachError: as ``attach``.
    """
    with Interruptible():
        return _attach(_copied(model), where, GateConfig(form=form), _Known(None, places), in_place=False)


@dataclass(frozen=True)
class _Known:
    """What says how the model is used: an example input, and places for gates over positions that are known."""

    example: Example | None
    places: Mapping[str, PositionPlace] | None = None


def _attach(
    model: nn.Module, where: WhereWithOptions, config: GateConfig, known: _Known, *, in_place: bool
) -> nn.Module:
    selection = _select(model, where, config, known)
    _check_selection(selection, where)
    if in_place and any(each.name == "" and not isinstance(each.module, Site) for each in selection.chosen):
        raise AttachError(
            "the model itself is the site and cannot be replaced in place: use model = attach(model, ...)"
        )
    chains, like = Chains(), first_parameter(model)
    chosen = selection.chosen if known.places is None else as_listed(selection.chosen, where)
    planned = [plan_gates(candidate, config, chains, like) for candidate in chosen]
    check_inside_blocks(model, planned)
    _warn(selection, {each.candidate.name for each in planned if each.adds})
    change = AllOrNothing(model)
    with change, change:
        return chains.begin_with_(_swap_in(model, planned, known))


def _swap_in(model: nn.Module, planned: Sequence[Planned], known: _Known) -> nn.Module:
    """Put the sites into the model; it must do the same steps as before."""
    layers = [each.candidate.module for each in planned]
    before = None if known.places is not None else steps_of(model, known.example, layers)
    forget_compiled(model)
    replacements: dict[nn.Module, nn.Module] = {}
    for each in planned:
        site = each.site()
        site.gates.extend(each.gates)
        site.gates.train(site.training)
        if site is not each.candidate.module:
            site.take_hooks_()
            replacements[each.candidate.module] = site
    root = replace_modules(model, replacements)
    after = steps_of(root, known.example, []) if isinstance(before, list) else None
    check_same_steps(before, after, "its layers carry gates", AttachError)
    return root


def _select(model: nn.Module, where: WhereWithOptions, config: GateConfig, known: _Known) -> SiteSelection:
    """Layers for gates on their channels, and places for gates over positions: ``where`` may ask for both."""
    if not isinstance(where, Mapping):
        if _over_positions(config, {}):
            return select_positions(model, where, known.example, known.places)
        if isinstance(where, str) and where == EVERYWHERE:
            raise AttachError(
                f"where={EVERYWHERE!r} is for static gates over positions, with the attentions "
                f"{', '.join(attention_names(acts='positions'))}; {config.form} {config.attention!r} is none of them"
            )
        return select(model, where, known.example)
    positions = {glob: options for glob, options in where.items() if _over_positions(config, options)}
    channels = {glob: options for glob, options in where.items() if glob not in positions}
    if not positions:
        return select(model, channels, known.example)
    found = select_positions(model, positions, known.example, known.places)
    if not channels:
        return found
    other = select(model, channels, known.example)
    twice = {candidate.name for candidate in found.chosen} & {candidate.name for candidate in other.chosen}
    if twice:
        raise AttachError(
            f"where= asks for a gate on the channels and for one over the positions of {sorted(twice)[0]!r}: attach "
            "the two in two calls"
        )
    return SiteSelection(found.chosen + other.chosen, found.refused + other.refused, other.cancelled)


def _over_positions(config: GateConfig, options: object) -> bool:
    """Whether a gate of this configuration, with the options of one ``where`` entry, is a static one over positions."""
    own = options if isinstance(options, Mapping) else {}
    name, form = own.get("attention", config.attention), own.get("form", config.form)
    return form == "static" and name in attention_names(acts="positions")


def _check_selection(selection: SiteSelection, where: WhereWithOptions) -> None:
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
    if isinstance(where, str) and where == EVERYWHERE:
        raise AttachError(
            f"{asked} finds nothing in this model that can hold a weight for each position: no layer that mixes "
            "positions, no module that averages all of them, no linear layer on the flattened map. Gate its channels "
            "instead"
        )
    raise AttachError(
        f"{asked} selects no layer of this model. "
        + ("It has no residual branch: use where='norm', or look" if where == "residual" else "Look")
        + " at sites(model, where='affine') for what there is, and at where='positions' for gates over positions"
    )


def _warn(selection: SiteSelection, adding: Collection[str]) -> None:
    """Name the gates that a normalisation behind takes away: what is ``adding`` goes only where it stands directly."""
    cancelled = [(each.name, each.norm) for each in selection.cancelled if each.directly or each.name not in adding]
    for name, norm in cancelled[:3]:
        more = f" (and {len(cancelled) - 3} more such sites)" if len(cancelled) > 3 else ""
        what = "what it adds" if name in adding else "its scale"
        warnings.warn(
            f"the gate on {name!r} has no effect: {norm!r} right behind it normalises {what} away. Attach to "
            f"{norm!r} instead{more}",
            stacklevel=4,
        )
