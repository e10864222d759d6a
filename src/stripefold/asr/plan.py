"""What goes where: the gates of every chosen layer, built and checked before anything of the model is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from stripefold.asr.build import Chains, GatePlace, build_gates
from stripefold.asr.config import GateConfig
from stripefold.asr.gate import DynamicGate, StaticGate
from stripefold.asr.gated import Gated
from stripefold.asr.position_site import InputSite, PoolSite
from stripefold.asr.select import SiteCandidate
from stripefold.asr.site import Site
from stripefold.attention.registry import attention_class
from stripefold.errors import AttachError, FoldError
from stripefold.graph.positions import PositionPlace
from stripefold.layers.probe import probe
from stripefold.layers.rule import Rule, rule_for
from stripefold.layers.shift import shift_refusal
from stripefold.modules.foldable import Foldable
from stripefold.modules.modules import first_parameter

Gates = list[StaticGate | DynamicGate]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A chosen layer and its gates.

    Attributes:
        candidate: the layer.
        gates: built for it.
        adds: whether they add to its output.
    """

    candidate: SiteCandidate
    gates: Gates
    adds: bool

    def site(self) -> Site | InputSite | PoolSite:
        """The module with gates that is there, or a new one around the layer."""
        module, place = self.candidate.module, self.candidate.place
        if place is not None and place.kind == "pooling":
            return PoolSite(module, place)
        rule = rule_for(module)
        assert rule is not None  # plan_gates has refused it otherwise
        if place is not None and place.kind == "flatten":
            return InputSite(module, place, rule)
        return module if isinstance(module, Site) else Site(module, rule)


def as_listed(chosen: Sequence[SiteCandidate], where: object) -> list[SiteCandidate]:
    """The layers in the order in which a mapping glob -> options names them, which is the order of a chain there."""
    globs = list(where) if isinstance(where, Mapping) else []
    return sorted(chosen, key=lambda candidate: globs.index(candidate.glob))


def plan_gates(candidate: SiteCandidate, defaults: GateConfig, chains: Chains, like: Tensor | None) -> Planned:
    """Build the gates of one layer.

    Args:
        candidate: the layer, with options of its own perhaps.
        defaults: what else holds.
        chains: shared between the layers of one ``attach`` call.
        like: any parameter of the model, for a module that has none.

    Raises:
        AttachError: the layer cannot take these gates, or an option is bad.
    """
    config = defaults.with_options(candidate.options, candidate.glob) if candidate.options else defaults
    adds = attention_class(config.attention).how == "add"
    if candidate.place is not None:
        place, config = _at_positions(candidate, candidate.place, config, like)
    else:
        place = _at_channels(candidate, config, adds=adds)
    return Planned(candidate=candidate, gates=build_gates(place, config, chains), adds=adds)


def _at_channels(candidate: SiteCandidate, config: GateConfig, *, adds: bool) -> GatePlace:
    name, module = candidate.name, candidate.module
    rule = rule_for(module)
    if rule is None:
        raise AttachError(f"cannot attach to {name!r}: {type(module).__name__} has no rule")
    if config.form == "dynamic" and not rule.called:
        raise AttachError(
            f"cannot attach to {name!r}: nn.MultiheadAttention reads its weight and never calls it, so a "
            "dynamic attention would have no effect. Use form='static', or leave it out with where=..."
        )
    judged = isinstance(module, Site)
    if isinstance(module, Site):
        _check_second(name, module, config, adds=adds)
        module = module.base
    _check_rule(name, module, rule, judged=judged, shift=adds and config.form == "static")
    return GatePlace(name=name, channels=rule.channels(module), axis=rule.axis, like=_like(name, module))


def _check_rule(name: str, module: nn.Module, rule: Rule, *, judged: bool, shift: bool) -> None:
    """The rule must hold on this very layer (a site's was ``judged``), and what is added have a bias to go into."""
    if isinstance(module, Foldable):  # a branch block: it will be the layer that the rule is for
        return
    reason = shift_refusal(module, rule) if shift else None
    if reason is not None:
        raise AttachError(
            f"cannot attach to {name!r}: {reason}, so that nothing in it takes what is added: use an attention that "
            "multiplies, or attach to another layer"
        )
    try:
        if not judged:
            probe(module, rule)
        if shift:
            probe(module, rule, "shift")
    except FoldError as error:
        raise AttachError(f"cannot attach to {name!r}: {error}") from error


def _at_positions(
    candidate: SiteCandidate, found: PositionPlace, config: GateConfig, like: Tensor | None
) -> tuple[GatePlace, GateConfig]:
    """Where a gate over positions goes, and its configuration with the resolution in it."""
    name, module = candidate.name, candidate.module
    if isinstance(module, Site) and found.kind == "tokens":
        _check_second(name, module, config, adds=False)
    given = config.options.get("grid")
    if given is not None and _size(given) != math.prod(found.grid):
        raise AttachError(
            f"cannot attach to {name!r}: grid={given!r} does not give the {found.size} positions of this layer"
        )
    if found.kind == "tokens" and config.options.get("per_channel"):
        raise AttachError(
            f"cannot attach to {name!r}: it mixes the positions of every channel alike, so that a scale of each "
            "channel's positions does not fold into it. Leave per_channel=True out"
        )
    own = first_parameter(module)
    own = like if own is None else own
    assert own is not None  # a place lies behind a layer
    grid = found.grid if given is None else tuple(given)
    place = GatePlace(name=name, channels=found.channels, axis=found.axis, like=own)
    return place, replace(config, options={**config.options, "grid": grid})


def _size(grid: object) -> int:
    sizes = grid if isinstance(grid, (tuple, list)) and all(type(size) is int for size in grid) else ()
    return math.prod(sizes)


def check_inside_blocks(model: nn.Module, planned: Sequence[Planned]) -> None:
    """A block folds by what its branches have: branches that depend on the input, or biases, are none of it.

    Raises:
        AttachError: inside a branch block, dynamic attention, or a gate that adds to a layer without a bias.
    """
    blocks = [name for name, m in model.named_modules() if isinstance(m, Foldable) and not isinstance(m, Gated)]
    for each in planned:
        candidate, gates = each.candidate, each.gates
        around = next((name for name in blocks if candidate.name.startswith(f"{name}." if name else "branches.")), None)
        if around is None:
            continue
        if any(isinstance(gate, DynamicGate) for gate in gates):
            raise AttachError(
                f"cannot attach to {candidate.name!r}: dynamic attention inside the branch block {around!r} would keep "
                f"its branches from merging. Use form='static' there, or attach to {around!r} itself"
            )
        if each.adds and getattr(candidate.module, "bias", None) is None:
            raise AttachError(
                f"cannot attach to {candidate.name!r}: it has no bias, and what is added inside the branch block "
                f"{around!r} would be lost when its branches merge. Attach to the BatchNorm behind it, or to "
                f"{around!r} itself"
            )


def _check_second(name: str, site: Site, config: GateConfig, *, adds: bool) -> None:
    static = [gate for gate in site.static_gates if gate.adds == adds]
    present: Gates = [*static] if config.form == "static" else [*site.dynamic_gates]
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
