"""Every architecture of timm of at most 60 million parameters, in the smallest size it takes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from tests.zoo.subject import Subject, images, quick_creation

MAXIMUM_PARAMETERS = 60_000_000
LIST_FILE = Path(__file__).parent / "results" / "timm_list.json"
_SIDES_FREE, _SIDES_FIXED = (96, 128), (64, 128)


def names() -> list[str]:
    """All architectures within the limit, smallest first; counted once per version of timm and kept in a file."""
    counted = json.loads(LIST_FILE.read_text(encoding="utf-8")) if LIST_FILE.exists() else {}
    if counted.get("timm") != timm.__version__:
        counted = {
            "timm": timm.__version__,
            "parameters": {name: count_parameters(name) for name in timm.list_models()},
        }
        LIST_FILE.parent.mkdir(exist_ok=True)
        LIST_FILE.write_text(json.dumps(counted, indent=0) + "\n", encoding="utf-8")
    parameters: dict[str, int] = counted["parameters"]
    within = [name for name, number in parameters.items() if number <= MAXIMUM_PARAMETERS]
    return sorted(within, key=lambda name: (parameters[name], name))


def count_parameters(name: str) -> int:
    """Parameters of an architecture, built without weights where timm can do that."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except (RuntimeError, NotImplementedError):
            with quick_creation():
                model = timm.create_model(name)
    return sum(parameter.numel() for parameter in model.parameters())


def subjects(name: str, **options: Any) -> list[Subject]:
    """The architecture in sizes from small to its own; the first that works is taken.

    Args:
        name: timm's.
        options: for its builder.
    """
    config = timm.get_pretrained_cfg(name)
    channels, *native = config.input_size if config is not None else (3, 224, 224)
    fixed = config is not None and config.fixed_input_size
    small = [(side, side) for side in (_SIDES_FIXED if fixed else _SIDES_FREE) if side < min(native)]
    found = [_subject(name, channels, size, options | ({"img_size": size} if fixed else {})) for size in small]
    return [*found, _subject(name, channels, tuple(native), options)]


def _subject(name: str, channels: int, size: tuple[int, ...], options: dict[str, Any]) -> Subject:
    def build() -> nn.Module:
        return timm.create_model(name, **options)

    return Subject(name=name, build=build, inputs=lambda seed: images(seed, channels, *size))
