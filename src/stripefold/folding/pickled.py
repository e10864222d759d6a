"""Weights that others pickled, ``.pth``, ``.pth.tar``, ``.pt``, ``.bin``: read as data, nothing in them is run."""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stripefold.errors import CheckpointError
from stripefold.inputs import check_regular

SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt", ".pkl")
_ZIP = b"PK\x03\x04"
# What training scripts put around a network, and around its names in its file.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_COUNTERS = ("n_averaged",)  # of torch.optim.swa_utils.AveragedModel, beside the weights
_DEPTH = 2


def is_pickled(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of torch's own, by its name or, where that says nothing, by its first bytes."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix == ".safetensors" or suffix in SUFFIXES or not os.path.isfile(path):
        return suffix in SUFFIXES
    with open(path, "rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def read_pickled(path: str | os.PathLike[str], own: Collection[str], key: str | None = None) -> dict[str, Tensor]:
    """The one state dict in a file that is meant.

    Args:
        path: a file of ``torch.save``: a state dict, or a mapping with one or several in it.
        own: the model's keys. Of several state dicts those with the same keys are meant.
        key: which one, such as ``state_dict_ema``; dotted where it lies deeper.

    Returns:
        Name -> tensor, without what ``DataParallel``, ``compile`` or Lightning put in front of every name.

    Raises:
        CheckpointError: unreadable, more than data, no state dict in it, or several that fit.
    """
    found = {name: _bare(tensors, own) for name, tensors in _state_dicts(_read(path))}
    where = os.fspath(path)
    if key is not None:
        if key not in found:
            raise CheckpointError(f"{where} has no state dict {key!r}; it holds {_listed(found)}")
        return found[key]
    if not found:
        raise CheckpointError(f"{where} holds no state dict; save model.state_dict() with torch.save or safetensors")
    fitting = {name: tensors for name, tensors in found.items() if tensors.keys() == set(own)} or found
    first = next(iter(fitting.values()))
    if any(not _same(first, other) for other in fitting.values()):
        raise CheckpointError(
            f"{where} holds {_listed(fitting)}, with other numbers each: say which (key=, or --weights-key)"
        )
    return first


def _read(path: str | os.PathLike[str]) -> Any:
    where = os.fspath(path)
    check_regular(path, CheckpointError)
    try:
        # The options of a training script, as timm's keeps them: a bag of values without code.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of how a file was made
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{where} does not exist") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{where} is damaged or holds more than data (a whole module, a script's own objects); nothing in it was "
            "run: save model.state_dict() where its code is at home"
        ) from error
    except Exception as error:  # whatever bytes can make of two readers: a zip's, and the old format's stack machine
        raise CheckpointError(
            f"{where} is damaged or truncated, or no file of torch ({type(error).__name__})"
        ) from error


def _state_dicts(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Every mapping of names to tensors, under its dotted key."""
    if not isinstance(content, Mapping) or not content or not all(isinstance(each, str) for each in content):
        return
    if all(isinstance(value, Tensor) for value in content.values()):
        yield name, content
    elif depth < _DEPTH:
        for key, value in content.items():
            yield from _state_dicts(value, f"{name}.{key}" if name else key, depth + 1)


def _bare(tensors: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    names = set(own)
    bare = dict(tensors)
    while not names & bare.keys():
        inner = {key: value for key, value in bare.items() if key not in _COUNTERS}
        prefix = next((each for each in _PREFIXES if inner and all(key.startswith(each) for key in inner)), None)
        if prefix is None:
            break
        bare = {key[len(prefix) :]: value for key, value in inner.items()}
    return bare


def _same(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return first.keys() == other.keys() and all(_equal(first[name], other[name]) for name in first)


def _equal(first: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers in the same form; torch compares no sparse ones, and not two types."""
    dense = first.layout == other.layout == torch.strided and first.dtype == other.dtype
    return first is other or (dense and torch.equal(first, other))


def _listed(found: Mapping[str, object]) -> str:
    return ", ".join(name or "one at the top" for name in found) or "none"
