"""Which options a file's configuration may set: those of the network, never what is opened, started or downloaded.

A file may come from anywhere. Its run's folder, whose ``config.yaml`` lies beside it, is the user's own word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stripefold.errors import CheckpointError, StripefoldError
from stripefold_lab.training.config import TrainConfig
from stripefold_lab.training.recipe import load_config

HERE = {"data_dir": None, "download": False, "workers": 0, "pretrained": False}
"""Options that open, start or download something, and what stands for a file's own."""
OF_THE_RUN = ("data_dir", "workers")
"""Those of them that the run's folder may say."""
_OF_PATHS = ("/", "\\", ":")


def own_run(path: Path) -> TrainConfig | None:
    """The configuration of the run's folder that a file lies in; None where it lies in none.

    Args:
        path: A file of a run, or one of its checkpoints.
    """
    for folder in (path.parent, path.parent.parent):
        file = folder / "config.yaml"
        if file.is_file():
            try:
                return load_config(file)
            except StripefoldError:  # another tool's
                return None
    return None


def decided_here(own: TrainConfig | None) -> dict[str, Any]:
    """Values for the options that a file does not decide.

    Args:
        own: What ``own_run`` found.
    """
    return {**HERE, **({} if own is None else {name: getattr(own, name) for name in OF_THE_RUN})}


def may_open(config: TrainConfig, own: TrainConfig | None) -> bool:
    """Whether the data that a file names are opened: they need no path, or its run's folder names the same.

    Args:
        config: Of the file.
        own: What ``own_run`` found.
    """
    return ":" not in config.data or (own is not None and own.data == config.data)


def check_options(options: Any, path: Path) -> None:
    """Refuse options of a network that name a file or an address: constructors may open them.

    Args:
        options: ``model_options`` of a file.
        path: The file, for the message.

    Raises:
        CheckpointError: One does.
    """
    named = next((text for text in _texts(options) if any(sign in text for sign in _OF_PATHS)), None)
    if named is not None:
        raise CheckpointError(f"{path}: model_options holds {named!r}, a path or an address; a file opens nothing here")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)
