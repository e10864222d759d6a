"""Sweeps by name, and from a YAML file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from stripefold.documents import DocumentError, read_text, shown
from stripefold.errors import ConfigError
from stripefold_lab.sweep.spec import BACKBONE, MOST_RUNS, Sweep
from stripefold_lab.training.config import check_known
from stripefold_lab.training.recipe import load_config, recipe_names
from stripefold_lab.yaml_documents import YAML_LIMIT, parse_yaml

KEYS = ("title", "base", "set", "settings", "grid", "random", "samples", "draw_seed", "seeds", "control")
FEW_SEEDS = 3


def sweep_names() -> tuple[str, ...]:
    """The sweeps that come with the package."""
    folder = resources.files("stripefold_lab.sweep") / "ablations"
    return tuple(sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def load_sweep(source: str | Path, /, *, base: str | None = None, seeds: Any = None, **overrides: Any) -> Sweep:
    """A sweep from a name or a file, with some of the base's options replaced.

    Args:
        source: One of ``sweep_names()``, or the path of a YAML file.
        base: Recipe, YAML file or run instead of the sweep's own base.
        seeds: How many seeds, or a list of them, instead of the sweep's own.
        overrides: Options of the base by name; they win.

    Raises:
        ConfigError: If there is no such sweep, it is no YAML mapping, a key or an option is unknown or cannot be set,
            or a value is refused.

    >>> load_sweep("delta", base="digits", epochs=2).grid
    {'repeats': [1, 2, 3, 4]}
    """
    values = _read(source)
    for key in values:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"keys: {', '.join(KEYS)}"
            raise ConfigError(f"unknown key {key!r} in the sweep {source}; {hint}")
    options = values.get("set") or {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"set is {options!r} in the sweep {source}; give a mapping of options to values")
    found = _base(base or _near(source, str(values.get("base", "digits"))), {**options, **overrides})
    sweep = Sweep(
        name=Path(source).stem,
        title=str(values.get("title", Path(source).stem)),
        base=found,
        settings=values.get("settings") or {},
        grid=values.get("grid") or {},
        random=values.get("random") or {},
        samples=values.get("samples", 0),
        draw_seed=values.get("draw_seed", 0),
        seeds=_seeds(values.get("seeds", FEW_SEEDS) if seeds is None else seeds),
        control=values.get("control", dict(BACKBONE)),
    )
    _check_free(sweep, {**options, **overrides})
    return sweep


def _read(source: str | Path) -> dict[str, Any]:
    name = str(source)
    if name in sweep_names():
        text = (resources.files("stripefold_lab.sweep") / "ablations" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = read_text(source, limit=YAML_LIMIT)
        except DocumentError as error:
            close = difflib.get_close_matches(name, sweep_names(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"sweeps: {', '.join(sweep_names())}"
            raise ConfigError(f"no sweep and no readable file {shown(name)} ({error}); {hint}") from error
    try:
        values = parse_yaml(text)
    except DocumentError as error:
        raise ConfigError(f"{source} cannot be used: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{source} holds {type(values).__name__}; a sweep is a mapping with keys {', '.join(KEYS)}")
    return values


def _near(source: str | Path, base: str) -> str:
    """A base that is a file is named from where the sweep's file lies, as one would expect of two files."""
    beside = Path(source).parent / base
    return str(beside) if base not in recipe_names() and os.path.exists(beside) else base


def _base(source: str, options: Mapping[str, Any]) -> Any:
    for name in ("run_dir", "resume", "seed"):
        if name in options:
            advice = "give seeds" if name == "seed" else "each run of a sweep has a folder of its own"
            raise ConfigError(f"{name} cannot be set for a sweep: {advice}")
    check_known(options, where="the sweep's set")
    config = load_config(source, **options)
    # One thread each: their number shows in a run's last bits, so it cannot be left to the machine.
    return config.with_overrides(run_dir=None, resume=False, seed=0, progress="lines", threads=config.threads or 1)


def _seeds(given: Any) -> tuple[int, ...]:
    if isinstance(given, int) and not isinstance(given, bool) and 0 < given <= MOST_RUNS:
        return tuple(range(given))
    if isinstance(given, (list, tuple)) and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in given):
        return tuple(given)
    raise ConfigError(f"seeds is {shown(given)}; give a number of seeds from 1 on, or a list of whole numbers")


def _check_free(sweep: Sweep, overrides: Mapping[str, Any]) -> None:
    for name in overrides:
        if name in sweep.varying:
            raise ConfigError(f"{name} cannot be set for the sweep {sweep.name}: it is what varies there")
