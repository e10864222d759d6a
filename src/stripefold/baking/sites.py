"""Per gate: which module a constant replaces, and where the constant may go exactly. Nothing is changed here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from stripefold.asr.gate import DynamicGate
from stripefold.baking.other_uses import other_use
from stripefold.baking.places import ReplacedModule, dynamic_around, find_replaced_module
from stripefold.baking.targets import Direction, GateInRun, targets_of
from stripefold.baking.unneeded_parts import NOTHING, Leaving, Spare, SpareParts
from stripefold.errors import BakeError
from stripefold.graph.absorption import FoldTarget, Refusal
from stripefold.graph.graph import Graph
from stripefold.layers.accepts import Acceptance
from stripefold.modules.closure_refs import held_by_functions, why_held
from stripefold.stripe.discover import ChannelGate, Discovery

ConstantPlacement = Literal["backward", "forward", "multiply", "keep"]


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
        spare: what serves this gate alone beside the module that is replaced.
        unseen: a reason is a module that did not run on the examples.
        beside: the scaled value is added to the product, x + v x, and both go: the factor is 1 + v.
        from_end: the channel axis of the product, counted from the end: 1 for the last.
    """

    gate: ChannelGate
    how: ConstantPlacement
    why: str
    place: ReplacedModule | None = None
    targets: tuple[tuple[Direction, FoldTarget], ...] = ()
    spare: Spare = NOTHING
    unseen: bool = False
    beside: bool = False
    from_end: int = 1

    def factor(self, v: Tensor) -> Tensor:
        """What the layers take for a constant v (C,).

        Of x + v x = (1 + v) x two equal summands are left where the attention returns what it is given.
        """
        return (1 + v.double()) / 2 if self.beside and self.target is not None else v

    def given(self, v: Tensor) -> Tensor:
        """What the module in the gate's place returns for a constant v (C,)."""
        tail = self.gate.tail
        return v if tail is None or self.place is None or self.place.path != tail.module else tail.before(v)

    @property
    def name(self) -> str:
        """The gate's name."""
        return self.gate.name

    @property
    def target(self) -> FoldTarget | None:
        """Where the constant goes, or None where it stays a multiplication."""
        return self.targets[0][1] if self.how in ("backward", "forward") else None

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that take the constant."""
        return self.target.layers if self.target is not None else ()

    @property
    def needs_nonnegative(self) -> bool:
        """Whether where it goes is exact only for constants that are not negative."""
        return self.target is not None and self.target.nonnegative


def plan_bake(
    model: nn.Module,
    discovery: Discovery,
    names: Collection[str] | None = None,
    *,
    constants: Mapping[str, Tensor] | None = None,
    training: bool = False,
    idle: bool = True,
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
        idle: modules that serve a gate alone may be replaced by some that do nothing.

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
        found = _planned(model, discovery, places, constants, training=training, idle=idle)
        # What a gate that stays reads may be in the way of the others: they are planned anew without it.
        stay = {site.name: Refusal(site.why, unseen=site.unseen) for site in found if site.how == "keep"}
        if all(isinstance(places[name][1], Refusal) for name in stay):
            return found
        places |= {name: (places[name][0], refusal) for name, refusal in stay.items()}


Places = dict[str, tuple[ChannelGate, ReplacedModule | Refusal]]
"""Gate -> the module that its constant replaces, or why none can be."""


def _planned(
    model: nn.Module,
    discovery: Discovery,
    places: Places,
    constants: Mapping[str, Tensor] | None,
    *,
    training: bool,
    idle: bool,
) -> list[BakeSite]:
    """What baking the gates that have a place means, and why the others stay."""
    graphs = discovery.trace.graphs
    dead_nodes = [_unused_in(graph, run, places) for graph, run in zip(graphs, discovery.runs, strict=True)]
    accept = Acceptance(model, training=training)
    replaced = [place.path for _, place in places.values() if isinstance(place, ReplacedModule)]
    leaving = [Leaving(graph, dead, replaced) for graph, dead in zip(graphs, dead_nodes, strict=True)]
    parts = SpareParts(model, leaving, idle=idle)
    found = []
    for gate, place in places.values():
        own = discovery.in_runs(gate.name)
        if not isinstance(place, Refusal):
            place = (
                (_not_in_training(gate, place) if training else None)
                or parts.exposed(own)
                or _other_use(graphs, dead_nodes, own, place)
                or place
            )
        if isinstance(place, Refusal):
            found.append(BakeSite(gate=gate, how="keep", why=place.why, unseen=place.unseen))
            continue
        runs = [GateInRun(graph, dead, each) for graph, dead, each in zip(graphs, dead_nodes, own, strict=True)]
        beside = not training and all(run.has_sum for run in runs)
        reasons = Refusal(f"the product stands in the forward of {gate.where or 'the model'!r} itself and stays there")
        targets: tuple[tuple[Direction, FoldTarget], ...] = ()
        if place.whole:
            targets, reasons = targets_of(runs, accept, beside=beside)
        from_end = len(discovery.graph_of(gate).nodes[gate.product].shape) - gate.axis
        site = BakeSite(gate=gate, how="multiply", why=reasons.why, unseen=reasons.unseen, place=place, targets=targets,
                        spare=parts.of(own, place), beside=beside, from_end=from_end)  # fmt: skip
        found.append(decided(site, None if constants is None else constants[gate.name]))
    return found


def _other_use(
    graphs: Sequence[Graph],
    dead: Sequence[frozenset[int]],
    gates: Sequence[ChannelGate | None],
    place: ReplacedModule,
) -> Refusal | None:
    """Why a constant would change something beside the gate, in any run; or None."""
    runs = zip(graphs, dead, gates, strict=True)
    found = (other_use(graph, none, gate, place) for graph, none, gate in runs if gate is not None)
    return next((refusal for refusal in found if refusal is not None), None)


def _unused_in(graph: Graph, run: Sequence[ChannelGate], places: Places) -> frozenset[int]:
    """The nodes of a run that nothing needs once the gates that have a place are constants."""
    baked = {gate.name for gate in _with_place(places)}
    lost = {}
    for gate in run:
        if gate.name in baked:
            lost[gate.product] = frozenset(graph.nodes[gate.product].inputs) - {gate.scaled}
            if gate.affine:
                lost[gate.end] = frozenset(graph.nodes[gate.end].inputs) - {gate.product}
    return graph.dead_without(lost) if graph.outputs else frozenset()


def _with_place(places: Places) -> list[ChannelGate]:
    """The gates that have a place."""
    return [gate for gate, place in places.values() if not isinstance(place, Refusal)]


def _chosen(discovery: Discovery, names: Collection[str] | None) -> list[ChannelGate]:
    known, asked = {gate.name: gate for gate in discovery.gates}, None if names is None else frozenset(names)
    unknown = [name for name in names or () if name not in known]
    if unknown:
        listed = ", ".join(map(repr, [*known][:5])) + (" ..." if len(known) > 5 else "")
        raise BakeError(f"no channel gate is called {unknown[0]!r}: the model has {listed or 'none'}")
    return [gate for gate in discovery.gates if asked is None or gate.name in asked]


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
    found: Places = {}
    for gate in gates:
        replaced = find_replaced_module(model, discovery, gate)
        found[gate.name] = (gate, Refusal(replaced) if isinstance(replaced, str) else replaced)
    held = held_by_functions(model)
    # Two products of one gate in a graph have a probe each.
    taken = Counter(place.path for _, place in found.values() if not isinstance(place, Refusal))
    for name, (gate, place) in found.items():
        if not isinstance(place, Refusal) and taken[place.path] > 1:
            found[name] = (gate, Refusal(f"{place.path!r} gives the gate of {taken[place.path]} products"))
        elif not isinstance(place, Refusal) and (why := why_held(model.get_submodule(place.path), held)) is not None:
            found[name] = (gate, Refusal(f"{place.path!r} cannot be replaced: {why}"))
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
            found[name] = (found[name][0], Refusal(why))
        if name is None or isinstance(found[name][1], Refusal):
            stays[link.chain] = site
    return found


def decided(site: BakeSite, v: Tensor | None) -> BakeSite:
    """Choose the best target whose sign condition holds for this constant (None: the best one), and say so."""
    if site.place is None:
        return site
    written = None if v is None else (1 + v) / 2 if site.beside else v
    below = 0 if written is None else int((written < 0).sum())
    # Of v x + b, what stays where v goes forward is x + b / v.
    none = site.gate.affine and v is not None and bool((v == 0).any())
    open_to = tuple(
        (way, target)
        for way, target in site.targets
        if not (below and target.nonnegative) and not (none and way == "forward")
    )
    if open_to:
        way, target = open_to[0]
        verb = "backward into" if way == "backward" else "forward into"
        words = f"{verb} {', '.join(target.layers)}" + (" (v >= 0)" if target.nonnegative else "")
        words += " (in evaluation mode: batch statistics would undo it)" if target.eval_only else ""
        words += " (what it adds stays)" if site.gate.affine else ""
        return replace(site, how=way, why=words, unseen=False, targets=open_to)
    reasons = [site.why] if site.why else []
    for way, target in site.targets:
        if below and target.nonnegative:
            reasons.append(f"{way}: a ReLU or a max pooling lies between, and {below} constants are negative")
        else:
            reasons.append(f"{way}: a constant is 0, and what it adds would have to be divided by it")
    if site.gate.read_on and site.place.whole:
        why = "; ".join([*reasons, _lost(site.gate)])
        return replace(site, how="keep", why=why, place=None, targets=(), spare=NOTHING)
    return replace(site, how="multiply", why="; ".join(reasons), targets=())


def _not_in_training(gate: ChannelGate, place: ReplacedModule) -> Refusal | None:
    """Why no trainable gate can take the place of an attention, or None."""
    if place.in_graph:
        return Refusal(
            "it stands in a torch.fx graph, where no layer can carry a trainable gate: bake it to a constant"
        )
    if gate.affine:
        return Refusal("it adds a value that depends on the image, too, for which there is no trainable gate")
    return Refusal(_lost(gate)) if gate.read_on else None


def _lost(gate: ChannelGate) -> str:
    """Why no multiplication can take the place of an attention whose result is not used."""
    return (
        f"{gate.where!r} writes into its input, and the model goes on with that and not with what {gate.where!r} "
        "returns, so that a multiplication in its place would be lost: use what it returns, x = attention(x)"
    )
