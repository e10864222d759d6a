"""Applies a bake plan: constants are merged into layers, and the attention modules leave the model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from stripefold.asr.chain import tidy_chains_
from stripefold.asr.site import Site
from stripefold.baking.graph_modules import fold_out_
from stripefold.baking.modules import ConstantGate, ConstantScale, ConstantShift, Idle, like_parameter
from stripefold.baking.override_gates import override_gates, summand_of
from stripefold.baking.places import ReplacedModule
from stripefold.baking.sites import BakeSite, check_constants, decided
from stripefold.baking.unneeded_parts import Spare
from stripefold.errors import BakeError
from stripefold.folding.verify import EquivalenceReport, verify
from stripefold.layers.absorb import absorb
from stripefold.modules.example import Example
from stripefold.modules.float64_weights import Float64Weights
from stripefold.modules.modules import (
    forget_compiled,
    is_sharded,
    move_call_hooks,
    replace_modules,
    unwrap_name,
)
from stripefold.stripe.discover import ChannelGate


def apply_(
    model: nn.Module, sites: Sequence[BakeSite], constants: Mapping[str, Tensor], *, once: bool = False
) -> tuple[nn.Module, list[BakeSite]]:
    """Bake constants into a model, in place: everything is checked, then everything is changed.

    A folded attention leaves an ``nn.Identity`` in its place: whatever the block's own code does with it (``is not
    None``, an index into a ``Sequential``), that is safe. So a model in which all constants fold consists of the
    classes it was built of, and unpickles where stripefold is not installed; a ``ConstantScale`` needs it.

    Args:
        model: the model that was planned for, unchanged since.
        sites: one ``plan``, all of it: its gates were judged together.
        constants: gate -> v (C,); products are formed in float64 and rounded once.
        once: what takes the place of a module that returned a gate returns one row for all samples, which costs
            nothing; most code broadcasts it.

    Returns:
        The model (another object only where the model itself was a site of ours), and the sites as they were baked:
        a sign condition that does not hold makes the next best of them.

    Raises:
        BakeError: constants that are missing or do not fit, a wrapped or sharded model, a product that overflows.
    """
    check_root(model)
    check_constants([site.gate for site in sites if site.how != "keep"], constants)
    final = [decided(site, constants.get(site.name)) for site in sites]
    modules = dict(model.named_modules())
    merged = Float64Weights()
    for site in final:
        for part in site.target.parts if site.target is not None else ():
            absorb(merged, modules[part.layer], part, site.factor(constants[site.name]))
    misfit = merged.misfit()
    if misfit is not None:
        paths = {module: name for name, module in modules.items()}
        raise BakeError(f"cannot bake: {misfit.refusal(paths)}")
    replacements = _replacements(model, modules, final, constants, once=once)
    forget_compiled(model)
    merged.write_()
    for old, new in replacements.items():
        move_call_hooks(old, new)
        new.train(old.training)
    replacements = _idle(model, modules, final, once=once) | replacements
    replacements |= _open_sites_(model, modules, final, constants)
    made = replace_modules(model, replacements)
    final = [_out_of_graph_(made, site, constants) for site in final]
    tidy_chains_(made)
    return made, final


def check_root(model: nn.Module) -> None:
    """See that a model can be changed in place.

    Raises:
        BakeError: it is wrapped (DDP, compiled ...) or sharded.
    """
    wrapper = unwrap_name(model) or ("FSDP2 (fully_shard)" if is_sharded(model) else None)
    if wrapper is not None:
        raise BakeError(f"cannot bake a model that is wrapped in {wrapper}: give the bare model")


def verify_baked(
    model: nn.Module,
    gates: Sequence[ChannelGate],
    baked: nn.Module,
    constants: Mapping[str, Tensor],
    example: Example,
) -> EquivalenceReport:
    """Compare a baked model with the network it was made from, its gates held constant by hooks.

    Args:
        model: the network before baking, with its dynamic attention.
        gates: its channel gates.
        baked: what ``apply_`` made of a copy of it.
        constants: gate -> v (C,), of the baked gates only.
        example: an input.

    Raises:
        VerifyError: they do not agree within the numeric policy (see ``verify``).
    """
    with override_gates(model, gates, constants):
        return verify(model, baked, example)


def _replacements(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    sites: Sequence[BakeSite],
    constants: Mapping[str, Tensor],
    *,
    once: bool,
) -> dict[nn.Module, nn.Module]:
    """Old module -> the new one that takes its place, for gates outside sites of ours; nothing is put there yet."""
    found: dict[nn.Module, nn.Module] = {}
    for site in sites:
        place = site.place
        if place is not None and place.site is None and not place.in_graph:
            old = modules[place.path]
            v = like_parameter(site.given(constants[site.name]), old, model)
            affine = site.gate.affine
            found[old] = _affine(site, place, v) if affine else _constant(site, place, v, once=once)
    return found


def _out_of_graph_(model: nn.Module, site: BakeSite, constants: Mapping[str, Tensor]) -> BakeSite:
    """Take a gate out of a ``torch.fx`` graph with all that computed it; the site says what could not go."""
    place = site.place
    if place is None or not place.in_graph:
        return site
    graph = model.get_submodule(site.gate.where)
    v = like_parameter(constants[site.name], graph, model) if site.target is None else None
    left = fold_out_(model, place.path, v, (site.from_end, place.shape))
    return replace(site, spare=Spare(modules={}, operations=left, costly=left > 0))


def _idle(
    model: nn.Module, modules: Mapping[str, nn.Module], sites: Sequence[BakeSite], *, once: bool
) -> dict[nn.Module, nn.Module]:
    """Modules that served baked gates alone -> one that does nothing; their hooks go with them."""
    return {
        modules[path]: Idle(shape, like_parameter(torch.ones(()), modules[path], model), once=once)
        for site in sites
        if site.how != "keep"
        for path, shape in site.spare.modules.items()
    }


def _constant(site: BakeSite, place: ReplacedModule, v: Tensor, *, once: bool) -> nn.Module:
    if site.target is not None:
        return nn.Identity()
    return ConstantScale(v, place.axis) if place.whole else ConstantGate(v, place.shape, once=once)


def _affine(site: BakeSite, place: ReplacedModule, v: Tensor) -> nn.Module:
    """What is left of v x + b: b where v went backward, b / v where it went forward, else both."""
    b = summand_of(site.gate, v)
    if site.target is not None:
        return ConstantShift(b / v if site.how == "forward" else b, place.axis)
    return nn.Sequential(OrderedDict(scale=ConstantScale(v, place.axis), shift=ConstantShift(b, place.axis)))


def _open_sites_(
    model: nn.Module, modules: Mapping[str, nn.Module], sites: Sequence[BakeSite], constants: Mapping[str, Tensor]
) -> dict[nn.Module, nn.Module]:
    """Take the dynamic attention off sites of ours, which have no other gates: the layer alone is left."""
    found: dict[nn.Module, nn.Module] = {}
    for site in sites:
        if site.place is None or site.place.site is None:
            continue
        wrapper = modules[site.place.site]
        assert isinstance(wrapper, Site)  # find_place has seen it
        wrapper.gates = nn.ModuleList()
        base = wrapper.without_static_gates_()
        if site.target is None:
            scale = ConstantScale(like_parameter(constants[site.name], base, model), site.place.axis)
            base = nn.Sequential(OrderedDict(layer=base, scale=scale)).train(wrapper.training)
        found[wrapper] = base
    return found
