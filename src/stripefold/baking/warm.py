"""``to="asr"``: trained attention becomes trainable gates, which start where the constants would be and fold later."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from stripefold.asr.chain import tidy_chains_
from stripefold.asr.gate import StaticGate
from stripefold.asr.site import Site
from stripefold.baking.apply import check_root
from stripefold.baking.excite import excite_of
from stripefold.baking.modules import ConstantScale, like_parameter
from stripefold.baking.places import dynamic_around
from stripefold.baking.scale_site import ScaleSite
from stripefold.baking.sites import BakeSite, decided, plan_bake
from stripefold.errors import BakeError
from stripefold.layers.rule import rule_for
from stripefold.modules.modules import forget_compiled, move_call_hooks, replace_modules
from stripefold.stripe.discover import Discovery


def warm_(
    model: nn.Module,
    discovery: Discovery,
    descriptors: Mapping[str, Tensor],
    names: Collection[str] | None = None,
) -> tuple[nn.Module, list[BakeSite]]:
    """Replace trained attention by ASR gates, in place: psi = mean descriptor, theta = the trained excite.

    Where one layer makes what is scaled, the gate sits on that layer as after ``attach``. Elsewhere it multiplies in
    the attention's own place and ``fold`` writes it into the layers behind. Everything is built and checked first.

    Args:
        model: the model that was discovered, unchanged since.
        discovery: its gates.
        descriptors: gate -> the mean of its squeezed value (D,); a gate without one stays dynamic.
        names: the gates to replace; None: all.

    Returns:
        The model (another object only where the model itself was a site), and the sites as they became; those that
        stay dynamic are "keep", with the reason.

    Raises:
        BakeError: an unknown name, a wrapped or sharded model, or a descriptor that does not fit.
    """
    check_root(model)
    sites, gates, reasons = _planned(model, discovery, descriptors, names)
    modules = dict(model.named_modules())
    replacements: dict[nn.Module, nn.Module] = {}
    final: list[BakeSite] = []
    for site in sites:
        final.append(decided(site, gates[site.name](torch.float64).detach()))
        replacements |= _placed(modules, final[-1], gates[site.name], frozenset(replacements))
    order = {gate.name: k for k, gate in enumerate(discovery.gates)}
    final = sorted([*final, *reasons.values()], key=lambda site: order[site.name])
    forget_compiled(model)
    for old, new in replacements.items():
        move_call_hooks(old, new)
    made = replace_modules(model, replacements)
    tidy_chains_(made)
    return made, final


def asr_gates(
    model: nn.Module, discovery: Discovery, names: Sequence[str], descriptors: Mapping[str, Tensor]
) -> tuple[dict[str, StaticGate], dict[str, str]]:
    """Gates of ASR that start as trained attention is: psi = mean descriptor, theta = a copy of the trained excite.

    Args:
        model: the model that was discovered; only read.
        discovery: its gates.
        names: of the gates.
        descriptors: gate -> the mean of its squeezed value (D,).

    Returns:
        Name -> gate; and for those that have none, the reason.
    """
    gates: dict[str, StaticGate] = {}
    reasons: dict[str, str] = {}
    sites = {site.name: site for site in plan_bake(model, discovery, names)}
    for name in names:
        made = _gate(model, discovery, sites[name], descriptors.get(name))
        if isinstance(made, str):
            reasons[name] = made
        else:
            gates[name] = made
    return gates, reasons


def _planned(
    model: nn.Module, discovery: Discovery, descriptors: Mapping[str, Tensor], names: Collection[str] | None
) -> tuple[list[BakeSite], dict[str, StaticGate], dict[str, BakeSite]]:
    """The sites that take a gate, planned together; their gates; and the others, as "keep".

    A gate that stays dynamic may be in the way of another one: the plan is made again without it.
    """
    gates: dict[str, StaticGate] = {}
    kept: dict[str, BakeSite] = {}
    while True:
        left = [name for name in _named(discovery, names) if name not in kept] if kept else names
        sites = plan_bake(model, discovery, left, training=True)
        before = len(kept)
        for site in sites:
            made = _why_not(model, site) or gates.get(site.name)
            made = made or _gate(model, discovery, site, descriptors.get(site.name))
            if not isinstance(made, str):
                gates[site.name] = made
                made = _why_not_signed(site, made)
            if made is not None:
                kept[site.name] = replace(site, how="keep", why=made, place=None, targets=())
        if len(kept) == before:
            return sites, gates, kept


def _named(discovery: Discovery, names: Collection[str] | None) -> list[str]:
    return [gate.name for gate in discovery.gates if names is None or gate.name in names]


def _why_not(model: nn.Module, site: BakeSite) -> str | None:
    """Why no trainable gate can stand in for this attention, or None."""
    if site.place is None or not site.targets:
        return site.why
    own = f"{site.place.site}.base" if site.place.site else "base"
    if site.place.site is not None and (site.how, site.layers) != ("backward", (own,)):
        return f"it sits behind the activation of its own layer {own!r}"
    return None


def _why_not_signed(site: BakeSite, gate: StaticGate) -> str | None:
    with torch.no_grad():
        chosen = decided(site, gate(torch.float64))
    return chosen.why if chosen.target is None else None


def _gate(model: nn.Module, discovery: Discovery, site: BakeSite, descriptor: Tensor | None) -> StaticGate | str:
    """The trainable gate of a site; or why its attention stays dynamic."""
    if descriptor is None:
        return "its descriptor was not observed, so that psi would not know where to start"
    attention = excite_of(model, discovery.graph_of(site.gate), site.gate)
    if isinstance(attention, str):
        return attention
    shape = attention.descriptor_shape
    if descriptor.numel() != torch.Size(shape).numel() or not bool(descriptor.isfinite().all()):
        raise BakeError(
            f"the descriptor of {site.name!r} has shape {tuple(descriptor.shape)}, expected {shape}, all of it finite"
        )
    like = like_parameter(descriptor.reshape(shape), attention, model)
    own = dynamic_around(model, site.place.path) if site.place is not None else None
    options = getattr(own, "options", None)
    gate = StaticGate(attention.to(like.device), like, options=options)
    gate.record_initial_scale_()
    return gate


def _placed(
    modules: Mapping[str, nn.Module], site: BakeSite, gate: StaticGate, taken: Collection[nn.Module]
) -> dict[nn.Module, nn.Module]:
    """What takes the place of what, so that the model computes with the gate instead of the attention."""
    place, target = site.place, site.target
    assert place is not None  # _planned has seen to it
    assert target is not None
    if place.site is not None:
        old = modules[place.site]
        assert isinstance(old, Site)
        return {old: _site(Site(old.base, old.rule), [*old.static_gates, gate])}
    attention = modules[place.path]
    layer = _own_layer(modules, site, taken)
    if layer is not None:
        rule = rule_for(layer)
        assert rule is not None  # the plan has probed it
        return {layer: _site(Site(layer, rule), [gate]), attention: nn.Identity().train(attention.training)}
    scale = ConstantScale(torch.ones_like(gate.psi.detach().new_empty(site.gate.channels)), place.axis)
    scale.weight.requires_grad_(False)
    return {attention: _site(ScaleSite(scale.train(attention.training), target, modules), [gate])}


def _site(site: Site, gates: Sequence[StaticGate]) -> Site:
    site.gates.extend(gates)
    site.gates.train(site.training)
    return site


def _own_layer(modules: Mapping[str, nn.Module], site: BakeSite, taken: Collection[nn.Module]) -> nn.Module | None:
    """The one layer that makes all of what is scaled, if no site is on it yet."""
    parts = site.target.parts if site.target is not None else ()
    if site.how != "backward" or len(parts) != 1 or parts[0].index != tuple(range(site.gate.channels)):
        return None
    layer = modules[parts[0].layer]
    held = isinstance(modules.get(parts[0].layer.rpartition(".")[0]), Site)
    return None if held or layer in taken else layer
