"""What a file or a checkpoint holds of a trajectory, checked: it may have been damaged, or never have been one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stripefold.documents import DocumentError, shown
from stripefold.errors import ObserveError
from stripefold.records import record
from stripefold.stripe.epoch import EpochStripes
from stripefold.stripe.files import tensor_of

FORMAT = "stripefold trajectory 1"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Of one gate: a row and the channels' means of every epoch, (epochs, C) float32."""

    rows: list[EpochStripes]
    channel_means: Any


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that a file holds."""

    format: str
    model: str
    images: int
    epochs: list[int]
    gates: dict[str, Kept]


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """What a checkpoint holds beside that: the last epoch's (sample, mean), and the means in full."""

    last: dict[str, tuple[Tensor, Tensor]]
    means: dict[str, Tensor]


def read_content(content: Any) -> Content:
    """What a file holds, its channel means as tensors.

    Args:
        content: As ``Trajectory.to_dict`` gives it.

    Raises:
        ObserveError: It is no such description, or contradicts itself.
    """
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise ObserveError(f"this is no trajectory of stripes: it does not say that it is one ({FORMAT!r})")
    try:
        held = record(Content, content, "the trajectory")
        if sorted(set(held.epochs)) != held.epochs or min([held.images, *held.epochs]) < 0:
            raise DocumentError("its epochs do not rise, or it counts below 0")
        gates = {gate: _with_means(kept, len(held.epochs), gate) for gate, kept in held.gates.items()}
    except DocumentError as error:
        raise ObserveError(f"this trajectory of stripes is damaged: {error}") from error
    return replace(held, gates=gates)


def _with_means(kept: Kept, epochs: int, gate: str) -> Kept:
    means = tensor_of(kept.channel_means, torch.float32, f"channel_means of {shown(gate)}")
    if len(kept.rows) != epochs or means.dim() != 2 or len(means) != epochs:
        raise DocumentError(f"{shown(gate)} does not have one row per epoch")
    return replace(kept, channel_means=means)


def read_state(state: Any) -> tuple[dict[str, Any], CheckpointState]:
    """What a checkpoint holds: the content, to be read as a file's, and the rest.

    Args:
        state: As ``Trajectory.state_dict`` gives it.

    Raises:
        ObserveError: It is none, or contradicts itself.
    """
    content = dict(state) if isinstance(state, Mapping) else {}
    try:
        held = record(CheckpointState, {name: content.pop(name, None) for name in ("last", "means")}, "the trajectory")
        gates = read_content(content).gates
        for gate, (sample, mean) in held.last.items():
            exact, like = held.means.get(gate), getattr(gates.get(gate), "channel_means", None)
            if exact is None or like is None or exact.shape != like.shape or sample.shape[1:] != mean.shape:
                raise DocumentError(f"what it holds of {shown(gate)} does not fit together")
        if not gates.keys() == held.last.keys() == held.means.keys():
            raise DocumentError("it holds different gates")
    except DocumentError as error:
        raise ObserveError(f"this trajectory of stripes is damaged: {error}") from error
    return content, held
