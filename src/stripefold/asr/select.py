"""Which layers become sites: every way of ``where``, and the reason for each layer taken or left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from stripefold.asr.config import check_entry
from stripefold.asr.gated import Gated
from stripefold.asr.site import Site
from stripefold.errors import AttachError, TraceError
from stripefold.graph.positions import PositionPlace
from stripefold.graph.trace import Trace, trace
from stripefold.layers.refusal import refusal_in
from stripefold.layers.rule import rule_for
from stripefold.modules.closure_refs import held_by_functions, why_held
from stripefold.modules.example import Example, infer_example
from stripefold.modules.modules import tensor_owners
from stripefold.modules.name_globs import close_names, matching, renamed
from stripefold.modules.peft_layers import under_adapters
from stripefold.modules.where import Where

_KEYWORDS = ("residual", "norm", "affine", "positions")
WhereWithOptions = Where | Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SiteCandidate:
    """A layer that becomes (or already is) a site, with the ``where`` entry and options that chose it.

    ``place`` says what is known of one that takes a gate over positions.
    """

    name: str
    module: nn.Module
    why: str
    glob: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    place: PositionPlace | None = None


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A layer that was asked for, or looks affine, and cannot be a site."""

    name: str
    kind: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """A site whose scale the normalisation ``norm`` behind it undoes; ``directly``: what it adds, too."""

    name: str
    norm: str
    directly: bool


@dataclass(frozen=True)
class SiteSelection:
    """The result of a ``where``: sites, refused layers, and the sites whose scale a normalisation behind cancels."""

    chosen: list[SiteCandidate]
    refused: list[Refused]
    cancelled: list[Cancelled]


def select(model: nn.Module, where: WhereWithOptions, example: Example | None) -> SiteSelection:
    """Resolve ``where`` on a model without changing it.

    Args:
        model: the model, plain or already attached.
        where: "residual", "norm", "affine", a glob or globs over dotted paths, a predicate, or glob -> options.
        example: an input for the trace; inferred where the model declares one.

    Raises:
        AttachError: a ``where`` of the wrong kind, a glob without a match, or an example is needed and missing.
        TraceError: the model does not run on the example.
    """
    if not isinstance(model, nn.Module):
        raise AttachError(f"expected an nn.Module, got {type(model).__name__}")
    layers = _layers(model)
    chosen, cancelled = _choose(model, layers, where, example)
    owners, held = tensor_owners(model), held_by_functions(model)
    adapted = under_adapters(model)
    sites: list[SiteCandidate] = []
    refused: list[Refused] = []
    for candidate in chosen:
        reason = adapted.get(candidate.module) or _refusal(candidate, owners, held)
        if reason is None:
            sites.append(candidate)
        else:
            refused.append(Refused(name=candidate.name, kind=type(candidate.module).__name__, why=reason))
    names = {candidate.name for candidate in sites}
    return SiteSelection(sites, refused, [each for each in cancelled if each.name in names])


def _refusal(candidate: SiteCandidate, owners: Mapping[int, list[str]], held: Mapping[nn.Module, str]) -> str | None:
    """An existing site was judged when it was made."""
    name, module = candidate.name, candidate.module
    if isinstance(module, Gated) and not isinstance(module, Site):
        return (
            f"it carries a gate over positions: for gates on its channels name the layer inside it, {name + '.base'!r}"
        )
    return None if isinstance(module, Site) else refusal_in(name, module, owners) or why_held(module, held)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """First dotted path -> module, for every module that is not inside a site."""
    layers: dict[str, nn.Module] = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        layers[name] = module
        if isinstance(module, Gated):
            # A site is one layer; behind a gate over positions the layer itself may still take gates on its channels.
            prefix = f"{name}." if name else ""
            inside.append(prefix if isinstance(module, Site) else f"{prefix}gates.")
    return layers


def _choose(
    model: nn.Module, layers: dict[str, nn.Module], where: WhereWithOptions, example: Example | None
) -> tuple[list[SiteCandidate], list[Cancelled]]:
    if where == "residual":
        return _residual(model, layers, example), []
    if where == "norm":
        return _by_predicate(layers, lambda _, m: _has_rule(m) and _is_norm(m), "normalisation with a rule"), []
    if where == "affine":
        chosen = _by_predicate(layers, lambda _, m: _has_rule(m), "layer with a rule")
    elif callable(where) and not isinstance(where, nn.Module):
        chosen = _by_predicate(layers, where, "where(name, module) is true")
    elif isinstance(where, Mapping):
        chosen = _by_mapping(model, layers, where)
    else:
        chosen = _by_globs(model, layers, globs_of(where))
    return chosen, _cancelled(model, chosen, example)


def _residual(model: nn.Module, layers: dict[str, nn.Module], example: Example | None) -> list[SiteCandidate]:
    graph = trace_for(model, example)
    return [
        SiteCandidate(name=tail.name, module=layers[tail.name], why=tail.why)
        for tail in graph.residual_tails()
        if tail.name in layers
    ]


def trace_for(model: nn.Module, example: Example | None) -> Trace:
    """The trace of a model on a given or inferred example.

    Raises:
        AttachError: no example is given and the model declares none.
    """
    example = infer_example(model) if example is None else example
    if example is None:
        raise AttachError(
            f"{type(model).__name__} does not say what its input looks like: give example= (a tensor, a tuple "
            f"of arguments "
            "or a dict of keyword arguments), or choose a where that needs none: 'norm', 'affine', a glob"
        )
    return trace(model, example, is_layer=_has_rule)


def _cancelled(model: nn.Module, chosen: list[SiteCandidate], example: Example | None) -> list[Cancelled]:
    """Sites whose scale a BatchNorm right behind undoes; found only where an example is at hand."""
    example = infer_example(model) if example is None else example
    if example is None or all(_is_norm(candidate.module) for candidate in chosen):
        return []
    try:
        graph = trace(model, example, is_layer=_has_rule)
    except TraceError:  # the user did not ask for a trace here: without one there is only no warning
        return []
    # What lies inside a branch block is no layer of the trace: the other branches are added before anything cancels.
    scaled = [candidate.name for candidate in chosen if candidate.name in graph.called]
    pairs = [(name, graph.cancelled_by(name)) for name in scaled]
    return [
        Cancelled(name=name, norm=norm, directly=graph.followed_by(name) == norm)
        for name, norm in pairs
        if norm is not None
    ]


def _has_rule(module: nn.Module) -> bool:
    return rule_for(module) is not None


def _is_norm(module: nn.Module) -> bool:
    rule = rule_for(module)
    return rule is not None and rule.norm


def _by_predicate(
    layers: dict[str, nn.Module], where: Callable[[str, nn.Module], bool], why: str
) -> list[SiteCandidate]:
    return [SiteCandidate(name=name, module=module, why=why) for name, module in layers.items() if where(name, module)]


def _by_globs(model: nn.Module, layers: dict[str, nn.Module], globs: Sequence[str]) -> list[SiteCandidate]:
    chosen: dict[str, SiteCandidate] = {}
    for glob in globs:
        for name in _matches(model, layers, glob):
            chosen.setdefault(name, SiteCandidate(name=name, module=layers[name], why=f"matches {glob!r}"))
    return [chosen[name] for name in layers if name in chosen]


def _by_mapping(
    model: nn.Module, layers: dict[str, nn.Module], where: Mapping[str, Mapping[str, Any]]
) -> list[SiteCandidate]:
    """Later globs win, as in most configuration files."""
    chosen: dict[str, SiteCandidate] = {}
    for glob, options in where.items():
        check_entry(glob, options)
        for name in _matches(model, layers, glob):
            why = f"matches {glob!r}"
            chosen[name] = SiteCandidate(name=name, module=layers[name], why=why, glob=glob, options=options)
    return [chosen[name] for name in layers if name in chosen]


def _matches(model: nn.Module, layers: dict[str, nn.Module], glob: str) -> list[str]:
    names = matching(layers, glob)
    if not names:
        hint = renamed(model, glob) or close_names(glob, [*_KEYWORDS, *layers])
        raise AttachError(
            f"where={glob!r} matches no module.{hint} Give 'residual', 'norm', 'affine' or a glob over dotted paths "
            "such as 'layer4.*.bn3'; sites(model, where='affine') lists what there is"
        )
    return names


def globs_of(where: object) -> list[str]:
    """One glob or several as a list.

    Raises:
        AttachError: it is something else.
    """
    if isinstance(where, str):
        return [where]
    if isinstance(where, Sequence) and where and all(isinstance(item, str) for item in where):
        return list(where)
    found = f"a module ({type(where).__name__})" if isinstance(where, nn.Module) else repr(where)
    raise AttachError(
        f"where={found}: give 'residual', 'norm', 'affine', a glob, a list of globs, a predicate "
        "(name, module) -> bool, or a mapping glob -> options"
    )
