"""Recipes: named configurations, and configurations from a YAML file."""

from __future__ import annotations

import difflib
import os
from importlib import resources
from pathlib import Path
from typing import Any

from stripefold.documents import DocumentError, read_text, shown
from stripefold.errors import ConfigError
from stripefold_lab.training.config import TrainConfig, check_known
from stripefold_lab.yaml_documents import YAML_LIMIT, parse_yaml


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with the package."""
    folder = resources.files("stripefold_lab.training") / "recipes"
    return tuple(sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def load_config(source: str | Path = "digits", /, **overrides: Any) -> TrainConfig:
    """A configuration from a recipe or a file, with some options replaced.

    Args:
        source: A recipe's name, the path of a YAML file, or the folder of a run (its resolved configuration).
        overrides: Options by name; they win.

    Raises:
        ConfigError: If there is no such recipe or file, it is no YAML mapping, an option is unknown, or a value is
            refused.

    >>> load_config("cifar", seed=3).milestones
    (81, 122)
    """
    values = read_yaml(source)
    check_known(values, where=str(source))
    check_known(overrides, where="the overrides")
    return TrainConfig(**{**values, **overrides})


def read_yaml(source: str | Path) -> dict[str, Any]:
    """The mapping a recipe or file holds.

    Args:
        source: As for ``load_config``.

    Raises:
        ConfigError: If it cannot be found or read.
    """
    text = _text(source)
    try:
        values = parse_yaml(text)
    except DocumentError as error:
        raise ConfigError(f"{source} cannot be used: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{source} holds {type(values).__name__}; a configuration is a mapping of options to values")
    return values


def _text(source: str | Path) -> str:
    name = str(source)
    if name in recipe_names():
        return (resources.files("stripefold_lab.training") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(source)
    try:
        path = path / "config.yaml" if os.path.isdir(path) else path  # False also where no file can have the name
        return read_text(path, limit=YAML_LIMIT)
    except DocumentError as error:
        close = difflib.get_close_matches(name, recipe_names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"recipes: {', '.join(recipe_names())}"
        raise ConfigError(f"no recipe and no readable file {shown(name)} ({error}); {hint}") from error
