"""Build the gates of a site from a configuration; nothing of the user's model is touched here."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stripefold.asr.chain import StateChain
from stripefold.asr.config import GateConfig
from stripefold.asr.gate import DynamicGate, StaticGate
from stripefold.attention.base import ChannelAttention
from stripefold.attention.registry import attention_options, build_attention
from stripefold.errors import AttachError

MIN_START = 1e-3
"""Smallest starting scale for ``init="identity"``: dividing by less amplifies a gate's gradient over 1000 times."""


@dataclass(frozen=True, kw_only=True)
class GatePlace:
    """Where a gate goes.

    Attributes:
        name: the site's path.
        channels: C of the layer's output.
        axis: channel axis of the layer's output.
        like: a parameter of the layer: device and dtype.
    """

    name: str
    channels: int
    axis: int
    like: Tensor


@dataclass
class Chains:
    """The shared module of each chain (DIA: one LSTM along all sites of one width), and how its gates are linked.

    Static gates know the one before, dynamic ones what hands the state on.
    """

    owners: dict[tuple[object, ...], ChannelAttention] = field(default_factory=dict)
    last: dict[tuple[object, ...], StaticGate] = field(default_factory=dict)
    states: dict[tuple[object, ...], StateChain] = field(default_factory=dict)

    def begin_with_(self, model: nn.Module) -> nn.Module:
        """See ``StateChain.begin_with_``, for all of them; returns the model."""
        for chain in self.states.values():
            chain.begin_with_(model)
        return model


def build_gates(place: GatePlace, config: GateConfig, chains: Chains) -> list[StaticGate | DynamicGate]:
    """The gates of one site, in order.

    Args:
        place: the site.
        config: what to build.
        chains: shared between the sites of one ``attach`` call.

    Raises:
        AttachError: bad options, a psi that does not fit, a start at a saddle or too near 0 for "identity".
    """
    count = config.repeats if config.form == "static" else 1
    try:
        return [_build_gate(place, config, chains, k) for k in range(count)]
    except AttachError as error:
        raise AttachError(f"cannot attach to {place.name!r}: {error}") from error


def _build_gate(place: GatePlace, config: GateConfig, chains: Chains, repeat: int) -> StaticGate | DynamicGate:
    key = _key(place, config, repeat)
    attention = chains.owners.get(key) or _attention(place, config)
    if config.form == "dynamic":
        return _dynamic_gate(place, config, chains, attention)
    attention.drop_squeeze_parameters_()
    psi = start_psi(attention, config.psi).to(place.like.device, place.like.dtype)
    if not psi.is_meta:
        attention.check_start(psi)
        # A shared attention is as the first gate of its chain needs it: whose start may have been measured already.
        if config.start == "live" and key not in chains.owners:
            attention.reactivate_dead_units_(psi)
    gate = StaticGate(attention, psi, previous=chains.last.get(key), options=config.options)
    if attention.chained:
        chains.owners[key] = attention
        chains.last[key] = gate
    _finish(gate, config)
    return gate


def _dynamic_gate(place: GatePlace, config: GateConfig, chains: Chains, attention: ChannelAttention) -> DynamicGate:
    name = config.attention
    if not attention.dynamic:
        raise AttachError(f"attention {name!r} has no dynamic form: use form='static'")
    if not attention.chained:
        return DynamicGate(attention, options=config.options)
    if not hasattr(attention, "forward_chained"):
        raise AttachError(
            f"attention {name!r} is chained and has no forward_chained(x, state) -> (y, state), which is its dynamic "
            "form along a chain: write it, or use form='static'"
        )
    key = _key(place, config)
    attention = chains.owners.setdefault(key, attention)
    chain = chains.states.setdefault(key, StateChain())
    return DynamicGate(attention, options=config.options, chain=chain, position=chain.join(place.name))


def _key(place: GatePlace, config: GateConfig, repeat: int = 0) -> tuple[object, ...]:
    """What the gates of one chain have in common; a dynamic one squeezes maps, so their channel axis, too."""
    axis = place.axis if config.form == "dynamic" else None
    return (config.form, config.attention, place.channels, axis, repeat, repr(sorted(config.options.items())))


def _attention(place: GatePlace, config: GateConfig) -> ChannelAttention:
    if odd := [name for name in ("name", "channels", "axis") if name in config.options]:
        known = ", ".join(attention_options(config.attention)) or "none"
        raise AttachError(f"attention {config.attention!r} has no option {odd[0]!r}; its options are: {known}")
    with torch.device(place.like.device):
        attention = build_attention(config.attention, place.channels, place.axis, **config.options)
    return attention.to(place.like.device, place.like.dtype)


def start_psi(attention: ChannelAttention, psi: float | Tensor | str | None) -> Tensor:
    """The starting descriptor, shape ``attention.descriptor_shape``, float64 on the CPU.

    Raises:
        AttachError: wrong shape, or entries that are not real or not finite.
    """
    shape = attention.descriptor_shape
    if isinstance(psi, Tensor):
        if tuple(psi.shape) != shape:
            raise AttachError(
                f"psi has shape {tuple(psi.shape)}, but attention {attention.name!r} on {attention.channels} channels "
                f"takes a descriptor of shape {shape}"
            )
        if psi.is_complex():
            raise AttachError(f"psi is {psi.dtype}: give real numbers")
        start = psi.detach().to("cpu", torch.float64, copy=True)
    elif psi == "random":
        start = torch.randn(shape, dtype=torch.float64, device="cpu")
    else:
        value = float(attention.default_psi if psi is None else psi)
        start = torch.full(shape, value, dtype=torch.float64, device="cpu")
    if not bool(start.isfinite().all()):
        raise AttachError(f"psi holds {int((~start.isfinite()).sum())} entries that are not finite")
    return start


def _finish(gate: StaticGate, config: GateConfig) -> None:
    if config.init == "identity":
        if gate.psi.is_meta:
            raise AttachError("init='identity' needs real weights, the layer is on the meta device")
        start = gate.normalize_to_identity_()
        smallest = float(start.abs().min())
        if smallest < MIN_START and not gate.adds:
            raise AttachError(
                "init='identity' divides by the starting scale, whose smallest entry is "
                f"{smallest:.2g} (limit {MIN_START:g}). Choose another psi or attention, or init='paper'"
            )
    gate.record_initial_scale_()
    if "psi" in config.freeze:
        gate.psi.requires_grad_(False)
    if "theta" in config.freeze:
        nn.Module.requires_grad_(gate.attention, False)
