"""The state of settling on disk: whole or not at all, and refused where it belongs to something else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.atomic import atomic_path
from stripefold.errors import BakeError

_VERSION = 1


@dataclass
class TrainingPosition:
    """Where the training stands.

    Attributes:
        step: steps done.
        epoch: how often the data were begun anew.
        epoch_start: the step at which that was last.
        mark: a number that tells the last batch from others.
    """

    step: int = 0
    epoch: int = 0
    epoch_start: int = 0
    mark: float = 0.0


class Checkpoint:
    """One file.

    Args:
        path: of the file.
        about: plain values that say what is trained how; a file that says otherwise is refused.
        model: its parameters and buffers are kept, those that are in no file of weights, too.
        others: what else has a ``state_dict``, by name.
    """

    def __init__(
        self, path: str | os.PathLike[str], about: Mapping[str, Any], model: nn.Module, others: Mapping[str, Any]
    ) -> None:
        self._path = path
        self._about = json.dumps(about, sort_keys=True)
        self._model, self._others = model, others

    def save(self, position: TrainingPosition) -> None:
        """Write it.

        Raises:
            BakeError: it cannot be written.
        """
        content = {
            "version": _VERSION, "about": self._about, "position": asdict(position),
            "tensors": tensors_of_model(self._model),
            "others": {name: other.state_dict() for name, other in self._others.items()},
        }  # fmt: skip
        try:
            with atomic_path(self._path) as temporary:
                torch.save(content, temporary)
        except OSError as error:
            raise BakeError(
                f"settle: cannot write {os.fspath(self._path)}: {error.strerror or error}; is the folder there?"
            ) from error

    def load(self) -> TrainingPosition:
        """Go on from the file; the start where there is none.

        Raises:
            BakeError: it is damaged, or of another training.
        """
        if not os.path.exists(self._path):
            return TrainingPosition()
        path = os.fspath(self._path)
        try:
            content = torch.load(self._path, map_location="cpu", weights_only=True)
            about, version, position = content["about"], content["version"], content["position"]
        except Exception as error:  # whatever a damaged file makes the unpickler say
            raise BakeError(f"settle: {path} is no checkpoint that can be read ({error}): move it away") from error
        if version != _VERSION or about != self._about:
            raise BakeError(
                f"settle: {path} is of another training ({_difference(about, self._about)}): move it away, or give "
                "another checkpoint="
            )
        with torch.no_grad():
            for name, tensor in tensors_of_model(self._model).items():
                tensor.copy_(content["tensors"][name])
        for name, other in self._others.items():
            other.load_state_dict(content["others"][name])
        return TrainingPosition(**{spec.name: position[spec.name] for spec in fields(TrainingPosition)})


def tensors_of_model(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name."""
    return {
        name: tensor.detach() for named in (model.named_parameters(), model.named_buffers()) for name, tensor in named
    }


def state_fingerprint(model: nn.Module) -> str:
    """A number that tells networks of one structure apart; not its last digits, which hang on the number of threads."""
    return f"{sum(float(t.double().abs().sum()) for t in tensors_of_model(model).values() if t.numel()):.9e}"


def _difference(theirs: str, ours: str) -> str:
    """What differs, the first few of it."""
    try:
        other, own = json.loads(theirs), json.loads(ours)
        names = [name for name in own if other.get(name) != own[name]]
        return ", ".join(f"{name} {other.get(name)!r}, now {own[name]!r}" for name in names[:3]) or "another version"
    except (ValueError, TypeError, AttributeError):
        return "another format"
