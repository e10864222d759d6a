"""Per gate: which module a constant replaces, and where the constant may go exactly. Nothing is changed here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from stripefold.asr.gate import DynamicGate
from stripefold.baking.places import Place, dynamic_around, find_place
from stripefold.errors import BakeError
from stripefold.folding.sides import LayerSides, layers_of
from stripefold.stripe.discover import ChannelGate, Discovery
from stripefold.surgery.held import held_by_functions, why_held
from stripefold.surgery.scale_paths import Reason, Target, backward, forward, unused

How = Literal["backward", "forward", "multiply", "keep"]


@dataclass(frozen=True, kw_only=True)
class BakeSite:
    """One gate and what baking it means.

    Attributes:
        gate: what was discovered.
        how: "backward" into the layer that makes the scaled value, "forward" into the layers that take it, "multiply"
            where neither is exact, "keep" where the gate cannot become a constant by surgery.
        why: the layers, or the reasons.
        place: which module is replaced by what; None for "keep".
        targets: where the constant may go, the best first; the first whose sign condition holds is taken.
    """

    gate: ChannelGate
    how: How
    why: str
    place: Place | None = None
    targets: tuple[tuple[Literal["backward", "forward"], Target], ...] = ()

    @property
    def name(self) -> str:
        """The gate's name."""
        return self.gate.name

    @property
    def target(self) -> Target | None:
        """Where the constant goes, or None where it stays a multiplication."""
        return self.targets[0][1] if self.how in ("backward", "forward") else None

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that take the constant."""
        return layers_of(self.target.parts) if self.target is not None else ()

    @property
    def needs_nonnegative(self) -> bool:
        """Whether where it goes is exact only for constants that are not negative."""
        return self.target is not None and self.target.nonnegative


def plan(
    model: nn.Module,
    discovery: Discovery,
    names: Collection[str] | None = None,
    *,
    constants: Mapping[str, Tensor] | None = None,
    training: bool = False,
) -> list[BakeSite]:
    """What baking these gates together means, gate by gate; the model is only read.

    Together, because what one gate reads may be in the way of another one's constant as long as it stays dynamic: ask
    again for every subset.

    Args:
        model: the model that was discovered, unchanged since.
        discovery: ``stripe.discover.discover(model, example)``.
        names: the gates to bake; None: all.
        constants: gate -> v (C,). With them a target that asks for v >= 0 is passed over where v has negative entries.
        training: targets must be exact in training mode, too (the input side of a BatchNorm is not).

    Returns:
        One entry per gate asked for, in the order of computation.

    Raises:
        BakeError: an unknown name, or constants that are missing, of another length or not finite.
    """
    gates = _chosen(discovery, names)
    if constants is not None:
        check_constants(gates, constants)
    places = _places(model, discovery, gates)
    while True:
        found = _planned(model, discovery, places, constants, training=training)
        # What a gate that stays reads may be in the way of the others: they are planned anew without it.
        stay = {site.name: site.why for site in found if site.how == "keep"}
        if all(isinstance(places[name][1], str) for name in stay):
            return found
        places |= {name: (places[name][0], why) for name, why in stay.items()}


Places = dict[str, tuple[ChannelGate, Place | str]]
"""Gate -> the module that its constant replaces, or why none can be."""


def _planned(
    model: nn.Module,
    discovery: Discovery,
    places: Places,
    constants: Mapping[str, Tensor] | None,
    *,
    training: bool,
) -> list[BakeSite]:
    """What baking the gates that have a place means, and why the others stay."""
    graph = discovery.trace.graph
    lost = {gate.product: frozenset(graph.nodes[gate.product].inputs) - {gate.scaled} for gate in _with_place(places)}
    ignoring = unused(graph, lost) if graph.outputs else frozenset()
    sides = LayerSides(model, training=training)
    found = []
    for gate, place in places.values():
        if isinstance(place, str) or (training and gate.read_on):
            found.append(BakeSite(gate=gate, how="keep", why=place if isinstance(place, str) else _lost(gate)))
            continue
        targets, reasons = _targets(discovery, gate, place, (sides, ignoring))
        v = None if constants is None else constants[gate.name]
        found.append(decided(BakeSite(gate=gate, how="multiply", why=reasons, place=place, targets=targets), v))
    return found


def _with_place(places: Places) -> list[ChannelGate]:
    """The gates that have a place."""
    return [gate for gate, place in places.values() if not isinstance(place, str)]


def _chosen(discovery: Discovery, names: Collection[str] | None) -> list[ChannelGate]:
    known = [gate.name for gate in discovery.gates]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        listed = ", ".join(repr(name) for name in known[:5]) + (" ..." if len(known) > 5 else "")
        raise BakeError(f"no channel gate is called {unknown[0]!r}: the model has {listed or 'none'}")
    return [gate for gate in discovery.gates if names is None or gate.name in names]


def check_constants(gates: Sequence[ChannelGate], constants: Mapping[str, Tensor]) -> None:
    """See that there is a constant for every gate, and that it fits.

    Raises:
        BakeError: one is missing, of another length or not finite.
    """
    for gate in gates:
        v = constants.get(gate.name)
        if v is None:
            raise BakeError(f"no constant was given for the gate {gate.name!r}")
        if tuple(v.shape) != (gate.channels,):
            raise BakeError(f"the constant for {gate.name!r} has shape {tuple(v.shape)}, expected ({gate.channels},)")
        if not bool(v.isfinite().all()):
            raise BakeError(
                f"the constant for {gate.name!r} is not finite in {int((~v.isfinite()).sum())} of {gate.channels} "
                "channels: look at the calibration data and at the gate's own values"
            )


def _places(model: nn.Module, discovery: Discovery, gates: list[ChannelGate]) -> Places:
    """What each gate's constant replaces."""
    found = {gate.name: (gate, find_place(model, discovery, gate)) for gate in gates}
    held = held_by_functions(model)
    taken = Counter(place.path for _, place in found.values() if not isinstance(place, str))
    for name, (gate, place) in found.items():
        if not isinstance(place, str) and taken[place.path] > 1:
            found[name] = (gate, f"{place.path!r} gives the gate of {taken[place.path]} products")
        elif not isinstance(place, str) and (why := why_held(model.get_submodule(place.path), held)) is not None:
            found[name] = (gate, f"{place.path!r} cannot be replaced: {why}")
    return _with_whole_chains(model, found)


def _with_whole_chains(model: nn.Module, found: Places) -> Places:
    """A gate of a chain hands its state on: it stays where any gate behind it stays."""
    links = {name: dynamic_around(model, gate.where) for name, (gate, _) in found.items()}
    own = {id(link): name for name, link in links.items() if link is not None}
    gates = [m for m in model.modules() if isinstance(m, DynamicGate) and m.chain is not None]
    stays: dict[object, str] = {}
    for link in sorted(gates, key=lambda gate: -gate.position):
        assert link.chain is not None  # mypy: seen above
        site, name = link.chain.sites[link.position], own.get(id(link))
        if name is not None and link.chain in stays:
            why = f"the attention on {stays[link.chain]!r} stays dynamic and takes its state: bake the whole chain"
            found[name] = (found[name][0], why)
        if name is None or isinstance(found[name][1], str):
            stays[link.chain] = site
    return found


def _targets(
    discovery: Discovery, gate: ChannelGate, place: Place, context: tuple[LayerSides, frozenset[int]]
) -> tuple[tuple[tuple[Literal["backward", "forward"], Target], ...], str]:
    """Where the constant may go: without conditions first, then backward first; and why not elsewhere."""
    sides, ignoring = context
    graph = discovery.trace.graph
    if not place.whole:
        return (), f"the product stands in the forward of {gate.where or 'the model'!r} itself and stays there"
    if not graph.outputs:
        return (), "what the model returns holds no tensor that the trace knows"
    back = backward(graph, gate.scaled, gate.axis, product=gate.product, sides=sides, ignoring=ignoring)
    ahead = forward(graph, gate.product, gate.axis, sides=sides, ignoring=ignoring)
    both = (("backward", back), ("forward", ahead))
    reasons = [f"{way}: {result.why}" for way, result in both if isinstance(result, Reason)]
    found: list[tuple[Literal["backward", "forward"], Target]] = []
    if isinstance(back, Target):
        found.append(("backward", back))
    if isinstance(ahead, Target):
        found.append(("forward", ahead))
    found.sort(key=lambda entry: (entry[1].eval_only, entry[1].nonnegative))
    return tuple(found), "; ".join(reasons)


def decided(site: BakeSite, v: Tensor | None) -> BakeSite:
    """Choose the best target whose sign condition holds for this constant (None: the best one), and say so."""
    negative = v is not None and bool((v < 0).any())
    if site.place is None:
        return site
    open_to = tuple(entry for entry in site.targets if not (negative and entry[1].nonnegative))
    if open_to:
        way, target = open_to[0]
        verb = "backward into" if way == "backward" else "forward into"
        words = f"{verb} {', '.join(layers_of(target.parts))}" + (" (v >= 0)" if target.nonnegative else "")
        words += " (in evaluation mode: batch statistics would undo it)" if target.eval_only else ""
        return BakeSite(gate=site.gate, how=way, why=words, place=site.place, targets=open_to)
    reasons = [site.why] if site.why else []
    for way, _ in site.targets:
        reasons.append(f"{way}: a ReLU or a max pooling lies between, and {int((v < 0).sum())} constants are negative")  # type: ignore[union-attr, operator]
    if site.gate.read_on and site.place.whole:
        return BakeSite(gate=site.gate, how="keep", why="; ".join([*reasons, _lost(site.gate)]))
    return BakeSite(gate=site.gate, how="multiply", why="; ".join(reasons), place=site.place)


def _lost(gate: ChannelGate) -> str:
    """Why no multiplication can take the place of an attention whose result is not used."""
    return (
        f"{gate.where!r} writes into its input, and the model goes on with that and not with what {gate.where!r} "
        "returns, so that a multiplication in its place would be lost: use what it returns, x = attention(x)"
    )
