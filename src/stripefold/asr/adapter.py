"""Adapters: only what attaching added, in one file, with a fingerprint of the backbone it belongs to."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stripefold.asr.attach import attach_at
from stripefold.asr.gate import DynamicGate, StaticGate
from stripefold.asr.gated import Gated
from stripefold.asr.position_site import InputSite, PoolSite, PositionSite
from stripefold.asr.site import Site
from stripefold.asr.sites import attached_sites
from stripefold.attention.positional import PositionAttention
from stripefold.attention.registry import attention_class, attention_names
from stripefold.documents import DocumentError, shown
from stripefold.errors import AdapterError, AttachError, one_line
from stripefold.folding.loaded_values import why_out_of_range
from stripefold.folding.weight_files import FileInfo, backbone_state, file_info, load_tensors, save_tensors
from stripefold.graph.positions import PositionPlace
from stripefold.records import checked, record


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of a backbone's keys and shapes, and of its weights."""

    structure: str
    weights: str


@dataclass(frozen=True)
class PlannedGate:
    """What a file says of one gate, so that ``attach`` can build it again."""

    form: Literal["static", "dynamic"]
    attention: str
    options: dict[str, Any]
    frozen: list[Literal["psi", "theta"]]
    place: dict[str, Any] | None
    position: int


def save_adapter(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write every gate of an attached model, what is needed to attach them again, and the backbone's fingerprint.

    Args:
        model: an attached model.
        path: a safetensors file.

    Raises:
        AdapterError: the model has no gates, or gates that ``attach`` cannot build.
        CheckpointError: the file cannot be written.
    """
    found = attached_sites(model)
    if not found:
        raise AdapterError("the model has no gates to save: attach(model, ...) first")
    for name, site in found.items():
        _check_buildable(name, site)
    tensors = {
        f"{name}.gates.{key}": tensor for name, site in found.items() for key, tensor in site.gates.state_dict().items()
    }
    plan = {name: [_describe(gate, site) for gate in site.gates] for name, site in found.items()}
    save_tensors(tensors, path, kind="adapter", extra={"plan": plan, "fingerprint": backbone_fingerprint(model)})


def load_adapter(backbone: nn.Module, path: str | os.PathLike[str], *, same_weights: bool = True) -> nn.Module:
    """A copy of the backbone with the adapter's gates attached.

    Args:
        backbone: the plain model the adapter was trained on.
        path: a file of ``save_adapter``.
        same_weights: demand the very weights of the backbone, not only its structure.

    Raises:
        AdapterError: not an adapter, or one for another backbone.
        CheckpointError: the file is damaged.
    """
    about = file_info(path)
    if about.kind != "adapter":
        raise AdapterError(
            f"{os.fspath(path)} is not an adapter but of kind {about.kind!r}: use load_model_(model, path)"
        )
    if attached_sites(backbone):
        raise AdapterError("the backbone already has gates: give the plain model, for example detach(model)")
    expected, plan = _read(os.fspath(path), about)
    _check_fingerprint(os.fspath(path), expected, backbone_fingerprint(backbone), same_weights)
    tensors = load_tensors(path)
    try:
        model = _attach_plan(backbone, plan)
    except AttachError as error:
        raise AdapterError(f"{os.fspath(path)} cannot be attached: {error}") from error
    found = attached_sites(model)
    _check_plan(os.fspath(path), plan, found)
    for name, site in found.items():
        _put_in_order_(site, plan[name])
        _load_gates(site, {key: t for key, t in tensors.items() if key.startswith(f"{name}.gates.")}, f"{name}.gates.")
    outside = sorted(key for key in tensors if not key.startswith(tuple(f"{name}.gates." for name in plan)))
    if outside:
        raise AdapterError(
            f"{os.fspath(path)} holds {outside[0]!r}, which is of no gate of its plan ({len(outside)} such tensors); "
            "save it anew"
        )
    return model


def _check_plan(path: str, plan: Mapping[str, list[dict[str, Any]]], found: Mapping[str, Gated]) -> None:
    """A site without gates in the plan was meant to have some."""
    if not plan:
        raise AdapterError(f"{path}: its plan of gates names no site; save the adapter anew")
    without = next((name for name in plan if name not in found), None)
    if without is not None:
        raise AdapterError(
            f"{path}: its plan of gates names {without!r}, and no gate could be attached there; save it anew"
        )


def _read(path: str, about: FileInfo) -> tuple[dict[str, str], dict[str, list[dict[str, Any]]]]:
    """The fingerprint and the plan of gates in a file's metadata, which may hold anything."""
    try:
        expected = asdict(record(Fingerprint, about.extra.get("fingerprint"), "fingerprint"))
        held = checked(dict[str, list[dict[str, Any]]], about.extra.get("plan"), "plan")
        plan = {name: [_read_gate(gate, f"a gate on {shown(name)}") for gate in gates] for name, gates in held.items()}
    except DocumentError as error:
        raise AdapterError(f"{path}: its plan of gates is damaged ({error})") from error
    return expected, plan


def _read_gate(gate: dict[str, Any], where: str) -> dict[str, Any]:
    """One gate of a plan; the first adapters had neither place nor position, and said what ``start`` says again."""
    held = {key: value for key, value in gate.items() if key != "identity"}
    return asdict(record(PlannedGate, {"place": None, "position": 0, **held}, where))


def backbone_fingerprint(model: nn.Module) -> dict[str, str]:
    """Hashes of the backbone inside a model: of its keys and shapes, and of its weights' bytes."""
    state = backbone_state(model)
    structure = hashlib.sha256()
    weights = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        structure.update(f"{name} {tuple(tensor.shape)}\n".encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {"structure": structure.hexdigest(), "weights": weights.hexdigest()}


def _check_fingerprint(path: str, expected: Mapping[str, str], found: Mapping[str, str], same_weights: bool) -> None:
    if expected["structure"] != found["structure"]:
        raise AdapterError(f"{path} is an adapter for another model: the backbone's keys or shapes differ")
    if same_weights and expected["weights"] != found["weights"]:
        raise AdapterError(
            f"{path} was trained on other weights of this architecture: load the backbone's weights first, or say "
            "same_weights=False if other weights are meant"
        )


def _check_buildable(name: str, site: Gated) -> None:
    """An adapter's gates are built by ``attach`` again, so they must be such that it can."""
    gates: list[StaticGate | DynamicGate] = [*site.static_gates, *site.dynamic_gates]
    kinds = {str(gate.attention.name) for gate in gates} - set(attention_names())
    if kinds or type(site) not in (Site, InputSite, PoolSite):
        what = f"of kind {sorted(kinds)[0]!r}" if kinds else "in the place of an attention module"
        raise AdapterError(
            f"the gate on {name!r} is {what}, made from the network's own attention by baking, which attach cannot "
            "build again: save the whole model instead"
        )


def _describe(gate: nn.Module, site: Gated) -> dict[str, Any]:
    if not isinstance(gate, (StaticGate, DynamicGate)):
        raise AdapterError(f"cannot save a gate of type {type(gate).__name__}")
    attention = gate.attention
    return {
        "form": "static" if isinstance(gate, StaticGate) else "dynamic",
        "attention": attention.name,
        "options": gate.options,
        "frozen": [part for part, frozen in _frozen(gate) if frozen],
        "place": _place(gate, site),
        "position": gate.position,
    }


def _place(gate: StaticGate | DynamicGate, site: Gated) -> dict[str, Any] | None:
    """What is known of the place of a gate over positions, so that it can be attached again without an example."""
    attention = gate.attention
    if not isinstance(gate, StaticGate) or not isinstance(attention, PositionAttention):
        return None
    if isinstance(site, PositionSite):
        place = asdict(site.place)
    else:
        place = {"kind": "tokens", "grid": attention.grid, "channels": attention.channels}
    return {key: value for key, value in place.items() if key != "name"}


def _frozen(gate: StaticGate | DynamicGate) -> list[tuple[str, bool]]:
    theta = [parameter.requires_grad for parameter in gate.attention.parameters()]
    psi = isinstance(gate, StaticGate) and not gate.psi.requires_grad
    return [("psi", psi), ("theta", isinstance(gate, StaticGate) and bool(theta) and not any(theta))]


def _attach_plan(model: nn.Module, plan: Mapping[str, list[dict[str, Any]]]) -> nn.Module:
    """Attach kind by kind, in the order of the first site, so that repeats come out as they were; chains in their own.

    Gates over positions come first: a site in one of theirs has its path from it.
    """
    kinds = dict.fromkeys(_kind(gate) for gates in plan.values() for gate in gates)
    for kind in sorted(kinds, key=lambda kind: not kind[0]):
        where, places = {}, {}
        chosen = {name: [gate for gate in gates if _kind(gate) == kind] for name, gates in plan.items()}
        for name, gates in sorted(chosen.items(), key=lambda item: item[1][0]["position"] if item[1] else 0):
            if gates:
                where[glob.escape(name)] = _options(gates)
                if gates[0]["place"] is not None:
                    places[name] = _known_place(name, gates[0]["place"])
        model = attach_at(model, where, kind[1], places)
    return model


def _kind(gate: Mapping[str, Any]) -> tuple[bool, Any, str]:
    """What tells apart gates that one call of attach can make: over positions or not, the form, what they do."""
    return gate["place"] is not None, gate["form"], attention_class(gate["attention"]).how


def _known_place(name: str, place: Mapping[str, Any]) -> PositionPlace:
    try:
        return record(PositionPlace, {"axis": 1, "output": (), "aside": False, **place, "name": name}, "it")
    except DocumentError as error:
        raise AdapterError(f"the place of the gate on {name!r} is damaged: {error}") from error


def _options(gates: list[dict[str, Any]]) -> dict[str, Any]:
    first = gates[0]
    options: dict[str, Any] = {"attention": first["attention"], "attention_options": first["options"]}
    if first["form"] == "static":
        options |= {"repeats": len(gates), "freeze": tuple(first["frozen"]), "psi": "random"}
    return options


def _put_in_order_(site: Gated, gates: list[dict[str, Any]]) -> None:
    """Kind by kind they were attached, and in the file they may stand in another order."""
    rest = list(site.gates)
    ordered: list[nn.Module] = []
    for gate in gates:
        wanted = (StaticGate if gate["form"] == "static" else DynamicGate, gate["attention"])
        found = next(each for each in rest if (type(each), each.attention.name) == wanted)  # type: ignore[union-attr]
        rest.remove(found)
        ordered.append(found)
    site.gates = nn.ModuleList(ordered)


def _load_gates(site: Gated, tensors: Mapping[str, Tensor], prefix: str) -> None:
    own = {key[len(prefix) :]: tensor for key, tensor in tensors.items()}
    for index, gate in enumerate(site.gates):
        start = own.get(f"{index}.start")
        if start is not None and isinstance(gate, StaticGate):
            kind = torch.promote_types(gate.psi.dtype, torch.float32)
            gate.start = torch.empty(start.shape, dtype=kind, device=gate.psi.device)
    unfit = why_out_of_range(site.gates.state_dict(), own)
    if unfit is not None:
        raise AdapterError(f"the adapter's gates do not fit: {prefix}{unfit}")
    try:
        site.gates.load_state_dict(own)
    except RuntimeError as error:
        raise AdapterError(f"the adapter's gates do not fit: {one_line(error)}") from error
