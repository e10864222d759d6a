"""A folder for the Hugging Face Hub: the folded weights, their configuration, and a model card with the proof.

The network in it is the plain backbone: timm, transformers, or the function that built it load it without stripefold.
Nothing here uses the network; ``huggingface_hub.upload_folder`` is one line of the user's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stripefold.asr.detach import detach
from stripefold.atomic import atomic_path, write_text
from stripefold.errors import CheckpointError, ConfigError, FoldError, one_line
from stripefold.folding.fold import fold
from stripefold.folding.report import FoldReport
from stripefold.folding.verify import EquivalenceReport, verify
from stripefold.folding.weight_files import load_tensors
from stripefold.integrations.hub_card import CARD, CardFacts, HubCard, card_text
from stripefold.integrations.hub_origins import WEIGHTS, Origin, origin_of
from stripefold.modules.example import Example, infer_example
from stripefold.modules.modules import first_parameter, unwrapped
from stripefold.own_files import own_files


@dataclass(frozen=True, kw_only=True)
class HubFolder:
    """What was written.

    Attributes:
        path: The folder.
        files: The names of the files in it.
        folding: What was folded where.
        verification: The network that was loaded back from the files, compared with the training model.
        control: The backbone without its gates, compared likewise: what a wrong file would look like. None where there
            are branch blocks alone.
    """

    path: Path
    files: tuple[str, ...]
    folding: FoldReport
    verification: EquivalenceReport
    control: EquivalenceReport | None

    def __str__(self) -> str:
        return f"{self.path}: {', '.join(self.files)}\nloaded back: {self.verification}"


def save_hub_folder(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    example: Example | None = None,
    build: Callable[..., nn.Module] | None = None,
    build_args: Mapping[str, Any] | None = None,
    card: HubCard | None = None,
) -> HubFolder:
    """Fold a copy of a training model and write ``model.safetensors``, ``config.json`` and ``README.md``.

    The files are what the network's own library expects: timm's ``hf-hub:`` and ``local-dir:``, transformers'
    ``from_pretrained``; for any other network a state dict for the plain class. Before they are there, the network is
    loaded back from them by that library and compared with the training model.

    Args:
        model: The training model, with its gates or branch blocks; it stays as it is.
        folder: Is made where it is missing. A file of another origin in it is never replaced.
        example: What both networks are compared on; what the model declares if None.
        build: The function or class that builds the plain network, such as ``torchvision.models.resnet18``, for the
            card and the check; timm and transformers know themselves.
        build_args: Its keyword arguments; anything JSON can hold.
        card: What only you know: licence, base model, tags, accuracy.

    Raises:
        CheckpointError: A file cannot be written, or is another's, or the network's library does not load it.
        ConfigError: Nothing to compare on, ``build`` is not for others to import, or huggingface_hub is missing.
        FoldError: Nothing to fold, it cannot be folded, or the result has other keys than the plain network.
        VerifyError: The network that was loaded back differs; nothing is written.
    """
    place, inner = Path(folder), unwrapped(model)
    example = infer_example(inner) if example is None else example
    if example is None:
        raise ConfigError(f"{type(inner).__name__} does not say what it takes, and the card needs a check: example=")
    origin = origin_of(inner, build, build_args or {})
    plain, folding = fold(inner, example=example, report=True)
    _check_plain(inner, plain, folding)
    said = card or HubCard()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=".hub-") as name:
            made = Path(name)
            origin.write(plain, made)
            checked = verify(inner, _loaded(origin, plain, made), example)
            control = _control(inner, example)
            facts = CardFacts(origin=origin, folding=folding, verification=checked, control=control)
            write_text(made / CARD, card_text(said, facts, name=said.name or place.resolve().name))
            files = _move(made, place)
    except OSError as error:
        raise CheckpointError(f"cannot write into {place}: {error.strerror or error}") from error
    return HubFolder(path=place, files=files, folding=folding, verification=checked, control=control)


def _check_plain(model: nn.Module, plain: nn.Module, folding: FoldReport) -> None:
    """Refuse a network that its plain class could not load, and one of which there is nothing to say.

    Raises:
        FoldError: Naming what is in the way.
    """
    name = type(model).__name__
    if not folding.folded:
        raise FoldError(f"{name} has no gates or branch blocks to fold: give the training model, not the folded one")
    kept = [note.name for note in folding.left] + list(folding.new_keys)
    kept += sorted(plain.state_dict().keys() - detach(plain).state_dict().keys())
    if kept:
        raise FoldError(
            f"the folded {name} still has {kept[0]!r}, which the plain network has not, so that nobody could load it "
            "without stripefold. stripefold.bake takes dynamic attention out; save_model writes any network"
        )


def _loaded(origin: Origin, plain: nn.Module, folder: Path) -> nn.Module:
    """The network in a folder, read by its own library, on the device of the folded one.

    Raises:
        CheckpointError: The library does not load it, or other weights than were written.
    """
    try:
        loaded = detach(plain) if origin.read is None else origin.read(folder)
        if origin.read is None:
            loaded.load_state_dict(load_tensors(folder / WEIGHTS))
    except Exception as error:  # whatever a library raises for a network that is not what its configuration says
        raise CheckpointError(_not_as_said(f"{type(error).__name__}: {one_line(error)}")) from error
    like = first_parameter(plain)
    loaded = loaded if like is None else loaded.to(like.device, like.dtype)
    wanted, found = plain.state_dict(), loaded.state_dict()
    wrong = [key for key in wanted.keys() | found.keys() if not _same(wanted.get(key), found.get(key))]
    if wrong:
        raise CheckpointError(_not_as_said(f"{min(wrong)!r} is not what was written"))
    return loaded


def _not_as_said(why: str) -> str:
    return f"the network is not loaded back by its library as it was built ({why}): say how with build= and build_args="


def _same(written: torch.Tensor | None, read: torch.Tensor | None) -> bool:
    return written is not None and read is not None and torch.equal(written, read)


def _control(model: nn.Module, example: Example) -> EquivalenceReport | None:
    """The backbone without its gates beside the training model; None where it has none."""
    bare = detach(model)
    if bare.state_dict().keys() == model.state_dict().keys():
        return None
    return verify(model, bare, example, raise_on_mismatch=False)


def _move(made: Path, place: Path) -> tuple[str, ...]:
    """Bring the finished files into their folder, one after another, each whole."""
    files = tuple(sorted(path.name for path in made.iterdir()))
    with own_files(place, files, CheckpointError):
        for name in files:
            with atomic_path(place / name) as target:
                os.replace(made / name, target)
    return files
