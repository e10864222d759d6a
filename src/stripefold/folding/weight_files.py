"""Weights on disk: safetensors that say what they are, and loading that explains a mismatch in those words."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stripefold.atomic import atomic_path
from stripefold.documents import DocumentError, parse_json
from stripefold.errors import CheckpointError, one_line
from stripefold.folding.loaded_values import why_out_of_range
from stripefold.folding.pickled import is_pickled, read_pickled
from stripefold.inputs import check_regular
from stripefold.modules.foldable import Foldable
from stripefold.records import record

FileKind = Literal["plain", "attached", "folded", "fused", "baked", "adapter"]
FORMAT = "stripefold"
_MEANING = {
    "plain": "the weights of a plain model",
    "attached": "a training file: a model with its gates or branch blocks",
    "folded": "a deployed file: a plain backbone with everything folded",
    "fused": "a deployed file: folded, and its BatchNorms merged into the layers in front of them",
    "baked": "a deployed file: dynamic attention replaced by constants",
    "adapter": "only what attaching added, without the backbone",
}


_LOADS_INTO = {
    "fused": " A fused file is loaded into fold(create(), fuse=True); with gates before a pooling, attach them to "
    "create() first.",
    "baked": " A baked file is loaded into a model of the same structure: stripefold.baking.rebuild gives one its own.",
}


BAKE = "bake"
"""Where a baked model's file holds what became of its gates."""


@dataclass(frozen=True, kw_only=True)
class BakedGates:
    """What a bake made of the gates of a model: the names of those folded, of those multiplied on, of those left."""

    folded: list[str]
    multiply: list[str]
    dynamic: list[str]


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """What a weights file says about itself.

    Attributes:
        kind: see ``FileKind``; "plain" for files of other origin.
        versions: of stripefold and torch that wrote it.
        extra: whatever else was stored (configuration, fingerprint).
    """

    kind: FileKind
    versions: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def save_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    kind: FileKind | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model's state dict, atomically, with metadata that says what it is.

    Tied tensors are written at every key and non-contiguous ones (channels_last) in plain layout, so that the file
    loads strictly into the stock class without stripefold.

    Args:
        model: attached, folded or plain.
        path: the safetensors file; its folder must exist.
        kind: None finds out: "attached" with gates, else "plain". Say "folded" or "fused" for a deployed model.
        extra: anything JSON can hold.

    Raises:
        CheckpointError: the file cannot be written, or holds what is neither a tensor nor JSON.
    """
    found = kind or ("attached" if any(isinstance(m, Foldable) for m in model.modules()) else "plain")
    return save_tensors(model.state_dict(), path, kind=found, extra=extra)


def save_tensors(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    kind: FileKind,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write named tensors as ``save_model`` does.

    Raises:
        CheckpointError: the file cannot be written.
    """
    from stripefold import __version__

    where = os.fspath(path)
    if kind not in _MEANING:
        raise CheckpointError(f"cannot write {where}: kind={kind!r} is none of {', '.join(_MEANING)}")
    versions = {"stripefold": __version__, "torch": torch.__version__}
    try:
        about = json.dumps({"kind": kind, "versions": versions, "extra": dict(extra or {})})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"cannot write {where}: extra= holds what JSON cannot hold ({error})") from error
    try:
        with atomic_path(path) as temporary:
            save_file(_storable(tensors, where), temporary, metadata={"format": "pt", FORMAT: about})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {where}: {error}. What was there before is untouched") from error
    return Path(path)


def _storable(tensors: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Contiguous tensors, none sharing memory with another."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            what = "is on the meta device and has no numbers" if isinstance(tensor, Tensor) else "is no tensor"
            raise CheckpointError(f"cannot write {path}: {name!r} {what}, and a weights file holds nothing else")
        plain = tensor.detach().contiguous()
        if plain.untyped_storage().data_ptr() in seen or plain.untyped_storage().nbytes() != plain.nbytes:
            plain = plain.clone(memory_format=torch.contiguous_format)
        seen.add(plain.untyped_storage().data_ptr())
        stored[name] = plain
    return stored


def file_info(path: str | os.PathLike[str]) -> FileInfo:
    """What a weights file says about itself, without reading its tensors.

    Raises:
        CheckpointError: not a readable safetensors file.
    """
    with _opened(path) as file:
        text = (file.metadata() or {}).get(FORMAT)
    if text is None:
        return FileInfo(kind="plain")
    try:
        about = record(FileInfo, parse_json(text))
        if BAKE in about.extra:
            record(BakedGates, about.extra[BAKE], BAKE)
        return about
    except DocumentError as error:
        raise CheckpointError(f"{os.fspath(path)}: its stripefold metadata is damaged ({error})") from error


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: not a readable safetensors file.
    """
    with _opened(path) as file:
        try:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except SafetensorError as error:
            raise CheckpointError(f"{os.fspath(path)} is damaged: {error}") from error


def load_model_(
    model: nn.Module, path: str | os.PathLike[str], *, strict: bool = True, key: str | None = None
) -> FileInfo:
    """Load a weights file into a model, in place; a mismatch changes nothing and is explained by what the file is.

    A plain backbone's file also loads into an attached model: its gates stay as they are.

    Args:
        model: attached or plain.
        path: a safetensors file, or one of ``torch.save`` (``.pth``, ``.pth.tar``, ``.pt``, ``.bin``), which is read
            with ``weights_only=True``.
        strict: demand that every key matches.
        key: which state dict of a file of ``torch.save``, where it holds several that fit, such as ``state_dict_ema``.

    Returns:
        What the file says about itself.

    Raises:
        CheckpointError: damaged file, a file of another kind than the model, one that does not say which of several
            state dicts is meant, or values that the model's types cannot hold.
    """
    about, tensors = _read(model, path, key)
    attached = any(isinstance(module, Foldable) for module in model.modules())
    _check_kind(os.fspath(path), about, attached)
    _check_keys(os.fspath(path), about, model, tensors, strict)
    unfit = why_out_of_range(_own_state(model, about), tensors)
    if unfit is not None:
        raise CheckpointError(f"{os.fspath(path)} ({_MEANING[about.kind]}) does not fit the model: {unfit}")
    try:
        model.load_state_dict(tensors, strict=strict)
    except RuntimeError as error:
        what = f"{os.fspath(path)} ({_MEANING[about.kind]})"
        raise CheckpointError(f"{what} does not fit the model: {one_line(error)}") from error
    return about


def _read(model: nn.Module, path: str | os.PathLike[str], key: str | None) -> tuple[FileInfo, dict[str, Tensor]]:
    if is_pickled(path):
        return FileInfo(kind="plain"), read_pickled(path, backbone_state(model), key)
    if key is not None:
        raise CheckpointError(f"{os.fspath(path)} holds one state dict alone: leave out the key {key!r}")
    return file_info(path), load_tensors(path)


def _own_state(model: nn.Module, about: FileInfo) -> dict[str, Tensor]:
    """The model's tensors under the keys that a file of this kind has."""
    return backbone_state(model) if about.kind == "plain" else model.state_dict()


def _check_kind(path: str, about: FileInfo, attached: bool) -> None:
    if about.kind == "adapter":
        raise CheckpointError(f"{path} is {_MEANING['adapter']}: use load_adapter(backbone, path)")
    if about.kind == "attached" and not attached:
        raise CheckpointError(
            f"{path} is {_MEANING['attached']}, but the model has none: attach with the same options first (and "
            "branch before that), or give the deployed (folded) file"
        )
    # A baked model may have kept some of its dynamic attention.
    partly = about.kind == "baked" and bool(about.extra.get(BAKE, {}).get("dynamic"))
    if about.kind in ("folded", "fused", "baked") and attached and not partly:
        raise CheckpointError(
            f"{path} is {_MEANING[about.kind]}, but the model still has gates or branch blocks: loading it "
            "here would scale twice. Load it into the plain backbone, or give the training file"
        )


def _check_keys(path: str, about: FileInfo, model: nn.Module, tensors: Mapping[str, Tensor], strict: bool) -> None:
    """Keys and shapes, before anything is copied: torch copies what fits before it complains."""
    own = _own_state(model, about)
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    if not (wrong or (strict and (missing or unexpected))):
        return
    parts = [f"missing {missing[:3]}"] if missing else []
    parts += [f"unexpected {unexpected[:3]}"] if unexpected else []
    parts += [f"of another shape {wrong[:3]}"] if wrong else []
    advice = _LOADS_INTO.get(about.kind, "")
    if any(isinstance(module, Foldable) and "base" not in module._modules for module in model.modules()):
        advice = (
            " The model has branch blocks, whose keys no plain file has: load such a file into the plain model first, "
            "then branch(model, ..., init='identity') keeps its weights."
        )
    raise CheckpointError(f"{path} ({_MEANING[about.kind]}) does not fit the model: {'; '.join(parts)}.{advice}")


def backbone_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict under the backbone's own keys: what ``x.base.weight`` of a gated layer is called in its file."""
    state: dict[str, Tensor] = model.state_dict()
    for name, module in reversed(list(model.named_modules())):  # inside out: a site may stand in another
        if isinstance(module, Foldable) and "base" in module._modules:
            site = f"{name}." if name else ""
            inside = {key: state.pop(key) for key in list(state) if key.startswith(site)}
            base = f"{site}base."
            state |= {site + key[len(base) :]: tensor for key, tensor in inside.items() if key.startswith(base)}
    return state


def _opened(path: str | os.PathLike[str]) -> Any:
    check_regular(path, CheckpointError)
    try:
        return safe_open(os.fspath(path), framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise CheckpointError(f"{os.fspath(path)} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{os.fspath(path)} is not a readable safetensors file ({error}): truncated, or of another kind"
        ) from error
