"""Where gates over positions can stand: the places that the trace shows, chosen by ``where``, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from stripefold.algebra.comparison import FLOAT64_TOLERANCE, relative_error
from stripefold.algebra.positions import map_scale
from stripefold.asr.config import check_entry
from stripefold.asr.position_site import PositionSite, weighted_pooling
from stripefold.asr.select import Refused, SiteCandidate, SiteSelection, WhereWithOptions, globs_of, trace_for
from stripefold.errors import AttachError, FoldError
from stripefold.graph.absorption import Side
from stripefold.graph.positions import PositionPlace, position_places
from stripefold.layers.probe import probe, twin_of
from stripefold.layers.refusal import altered, refusal, tied_to
from stripefold.layers.rule import rule_for
from stripefold.modules.closure_refs import held_by_functions, why_held
from stripefold.modules.example import Example, infer_example
from stripefold.modules.foldable import Foldable
from stripefold.modules.modules import tensor_owners
from stripefold.modules.name_globs import close_names, matching

EVERYWHERE = "positions"
_ASIDE = (
    "what it pools has other users as well (an attention's squeeze, a branch of a pyramid): name it in where= to gate "
    "it all the same"
)
_WHERE_CHANNELS = ("residual", "norm", "affine")


def select_positions(
    model: nn.Module, where: WhereWithOptions, example: Example | None, known: Mapping[str, PositionPlace] | None = None
) -> SiteSelection:
    """Resolve ``where`` to places for gates over positions, without changing the model.

    Args:
        model: the model, plain or already attached.
        where: "positions" (all places), a glob or globs over their dotted paths, a predicate, or glob -> options.
        example: an input of the resolution that the gates are for; inferred where the model declares one.
        known: dotted path -> place, where the places are known already (an adapter says them); then nothing is traced.

    Raises:
        AttachError: a ``where`` that chooses layers by their channels, a glob without a match, no example.
        TraceError: the model does not run on the example.
    """
    if isinstance(where, str) and where in _WHERE_CHANNELS:
        raise AttachError(
            f"where={where!r} chooses layers for gates on their channels. A gate over positions folds only where they "
            "meet a linear map: say where='positions' (sites(model, 'positions') lists these places), or name some"
        )
    places, refused = _found(model, example) if known is None else (known, [])
    modules = dict(model.named_modules())
    owners, held = tensor_owners(model), held_by_functions(model)
    chosen: list[SiteCandidate] = []
    for name, (why, glob) in _chosen(places, modules, where).items():
        place, module = places[name], modules[name]
        reason = _ASIDE if place.aside and where == EVERYWHERE else _refusal(place, module, owners)
        reason = reason or (None if isinstance(module, Foldable) else why_held(module, held))
        if reason is not None:
            refused.append(Refused(name=name, kind=type(module).__name__, why=reason))
            continue
        options = where[glob] if isinstance(where, Mapping) else {}
        chosen.append(SiteCandidate(name=name, module=module, why=why, glob=glob, options=options, place=place))
    return SiteSelection(chosen, refused, [])


def _found(model: nn.Module, example: Example | None) -> tuple[dict[str, PositionPlace], list[Refused]]:
    example = infer_example(model) if example is None else example
    if example is None:
        raise AttachError(
            f"{type(model).__name__} does not say what its input looks like, and a gate over positions is for one "
            "resolution: give example= (a tensor, a tuple of arguments or a dict of keyword arguments) of that size"
        )
    places, without = position_places(trace_for(model, example).graph)
    refused = [Refused(name=each.name, kind=each.what, why=each.why) for each in without]
    taken = [name for name, module in model.named_modules() if isinstance(module, PositionSite)]
    free: dict[str, PositionPlace] = {}
    for place in places:
        owner = next((name for name in taken if f"{place.name}.".startswith(f"{name}.")), None)
        if owner is None:
            free[place.name] = place
        else:
            why = "it already has a gate over positions: use repeats= for several in a row, or start over with detach_"
            refused.append(Refused(name=owner, kind=place.kind, why=why))
    return free, refused


def _chosen(
    places: Mapping[str, PositionPlace], modules: Mapping[str, nn.Module], where: WhereWithOptions
) -> dict[str, tuple[str, str]]:
    """Path -> (why, the glob that chose it), in the order of the places; later globs win."""
    if where == EVERYWHERE:
        return {name: (place.why, "") for name, place in places.items()}
    if callable(where) and not isinstance(where, nn.Module):
        why = "where(name, module) is true"
        return {name: (f"{place.why}; {why}", "") for name, place in places.items() if where(name, modules[name])}
    found: dict[str, tuple[str, str]] = {}
    for glob in where if isinstance(where, Mapping) else globs_of(where):
        if isinstance(where, Mapping):
            check_entry(glob, where[glob])
        names = matching(places, glob)
        if not names:
            raise AttachError(_no_match(glob, places, modules))
        found |= {name: (f"{places[name].why}; matches {glob!r}", glob) for name in names}
    return {name: found[name] for name in places if name in found}


def _no_match(glob: str, places: Mapping[str, PositionPlace], modules: Mapping[str, nn.Module]) -> str:
    listed = ", ".join(map(repr, list(places)[:5])) + (" ..." if len(places) > 5 else "")
    known = f"the places of this model are {listed}" if places else "this model has no such place"
    if not matching(modules, glob):
        return f"where={glob!r} matches no module.{close_names(glob, [EVERYWHERE, *places])} For positions, {known}"
    return (
        f"where={glob!r} names nothing that can hold a weight for each position: a token-mixing layer, a module that "
        "averages all positions, or a linear layer on the flattened map can, a convolution or normalisation cannot; "
        f"{known}"
    )


def _refusal(place: PositionPlace, module: nn.Module, owners: Mapping[int, list[str]]) -> str | None:
    """Why the module of a place cannot take a gate, in words, or None."""
    try:
        if place.kind == "pooling":
            return altered(module) or _probe_pooling(module, place)
        rule = rule_for(module)
        side: Side = "output" if place.kind == "tokens" else "input"
        if rule is None or (side == "input" and rule.input is None):
            return f"{type(module).__name__} has no input side: a scale of its input does not fold into it"
        if isinstance(module, Foldable):
            return None  # a site, judged when it was made, or a block that will be the layer that the rule is for
        reason = refusal(module) or (rule.input_refuse(module) if side == "input" else None)
        reason = reason or tied_to(module, rule.side(side), place.name, owners)
        if reason is None:
            probe(module, rule, side)
    except FoldError as error:
        return str(error)
    return reason


def _probe_pooling(module: nn.Module, place: PositionPlace) -> str | None:
    """Why a module is not the mean that its place says it is, or None: tried out on random maps, float64."""
    generator = torch.Generator("cpu").manual_seed(20240611)
    x = torch.randn(2, place.channels, *place.grid, generator=generator, dtype=torch.float64)
    s = torch.rand(place.channels, x[0, 0].numel(), generator=generator, dtype=torch.float64) + 0.25
    with torch.no_grad():
        expected = weighted_pooling(s, place)(x)
        found = twin_of(module, generator)(x * map_scale(s, place.grid))
    same = relative_error(found, expected) <= FLOAT64_TOLERANCE
    return None if same else f"{type(module).__name__} does not compute the mean over its positions"
