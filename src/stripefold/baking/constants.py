"""The constants of a bake, from what was observed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from stripefold.baking.excite import excite_of
from stripefold.baking.options import ConstantKind
from stripefold.errors import BakeError
from stripefold.stripe.discover import ChannelGate, Discovery
from stripefold.stripe.layer import LayerStripes


def constants_of(
    model: nn.Module,
    discovery: Discovery,
    layers: Iterable[LayerStripes],
    kind: ConstantKind = "mean",
    weighted: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """One v for every observed gate.

    "mean" is the mean of v(x) over the images: of all constants the one with the least squared error. "descriptor" is
    excite(mean of squeeze(x)): what the gate says to the average image. They differ as far as excite is curved.
    "energy" and "least-squares" are one and the same, the constant with the least squared error of what is scaled.

    Args:
        model: the model that was discovered; only read.
        discovery: its gates.
        layers: what was observed of them (``StripeReport.layers``).
        kind: which.
        weighted: gate -> its constant of that kind (see ``weighted_constants``), NaN for a silent channel.

    Returns:
        Gate -> v (C,), float64 on the CPU; and for gates that get the mean instead, the reason.

    Raises:
        BakeError: an unknown kind.
    """
    if kind not in ("mean", "descriptor", "energy", "least-squares"):
        raise BakeError(f"constants={kind!r}: expected 'mean' or 'descriptor', 'energy' or 'least-squares'")
    gates = {gate.name: gate for gate in discovery.gates}
    constants: dict[str, Tensor] = {}
    reasons: dict[str, str] = {}
    for layer in layers:
        constants[layer.name] = layer.mean.double().cpu().clone()
        if kind == "descriptor" and layer.name in gates:
            found = _from_descriptor(model, discovery, gates[layer.name], layer)
            if isinstance(found, str):
                reasons[layer.name] = f"{found}: the mean of v was taken"
            else:
                constants[layer.name] = found
        elif kind in ("energy", "least-squares"):
            own = (weighted or {}).get(layer.name)
            if own is None:
                reasons[layer.name] = "what it scales was not seen: the mean of v was taken"
            else:
                mean = constants[layer.name]
                constants[layer.name] = torch.where(own.isfinite(), own, mean)
    return constants, reasons


def _from_descriptor(model: nn.Module, discovery: Discovery, gate: ChannelGate, layer: LayerStripes) -> Tensor | str:
    if layer.descriptor_mean is None:
        return "its descriptor was not observed, because no module is called with it"
    excite = excite_of(model, discovery.graph_of(gate), gate)
    if isinstance(excite, str):
        return excite
    shape, given = excite.descriptor_shape, layer.descriptor_mean
    if given.numel() != torch.Size(shape).numel():
        return f"its descriptor has {given.numel()} entries, {torch.Size(shape).numel()} expected"
    with torch.no_grad():
        v: Tensor = excite.to("cpu", torch.float64).excite_static(given.double().cpu().reshape(shape))
    return v
