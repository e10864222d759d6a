"""From a sweep to its runs: which settings there are, what each is called, and what it is compared with."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stripefold.errors import ConfigError
from stripefold_lab.training.unused_options import canonical

if TYPE_CHECKING:
    from stripefold_lab.sweep.spec import Sweep
    from stripefold_lab.training.config import TrainConfig

NAME_LENGTH = 80


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained once under every seed.

    Attributes:
        label: What it is called in table and picture.
        config: Its configuration, under seed 0.
        control: Label of the setting it is compared with; None for a control itself, or without a comparison.
    """

    label: str
    config: TrainConfig
    control: str | None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run.

    Attributes:
        name: Name of its folder; follows from what varies.
        setting: The label of its setting.
        config: Its configuration, without ``run_dir``.
    """

    name: str
    setting: str
    config: TrainConfig


def list_settings(sweep: Sweep, drawn: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """The settings in the sweep's order, each control right before the first that needs it; equal ones are one.

    Args:
        sweep: The sweep.
        drawn: The samples of its random search.

    Raises:
        ConfigError: If a combination of options is refused; names the setting.
    """
    points = list(_points(sweep, drawn))
    against = sweep.control
    controls = [None if against is None else _config(sweep, label, values, against) for label, values in points]
    names = _name_controls(sweep, [control for control in controls if control])
    found: dict[str, tuple[str, TrainConfig, str | None]] = {}
    for (label, values), control in zip(points, controls, strict=True):
        if control:
            found.setdefault(_key(control), (names[_key(control)], control, None))
        config = _config(sweep, label, values)
        found.setdefault(_key(config), (label, config, _key(control) if control else None))
    labels = dict(zip(found, _distinct([label for label, _, _ in found.values()]), strict=True))
    return [
        Setting(label=labels[key], config=config, control=None if control_key is None else labels[control_key])
        for key, (_, config, control_key) in found.items()
    ]


def list_trials(sweep: Sweep, settings: Sequence[Setting]) -> list[Trial]:
    """Every setting under every seed; a whole round of settings before the next seed, so that all grow evenly.

    Args:
        sweep: The sweep.
        settings: What ``list_settings`` gave.
    """
    names = _folders(settings)
    return [
        Trial(
            name=f"{names[setting.label]}-seed{seed}",
            setting=setting.label,
            config=setting.config.with_overrides(seed=seed),
        )
        for seed in sweep.seeds
        for setting in settings
    ]


def shown(value: Any) -> str:
    """A value as it stands in a label.

    >>> shown(0.012345678), shown(("psi", "theta")), shown(()), shown({"reduction": 4})
    ('0.01235', 'psi+theta', 'none', 'reduction=4')
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "+".join(map(shown, value)) or "none"
    if isinstance(value, Mapping):
        return "+".join(f"{name}={shown(item)}" for name, item in value.items()) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "default" if value is None else str(value)


def _points(sweep: Sweep, drawn: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and options of every setting but the controls."""
    chosen = list(sweep.settings.items()) or [("", {})]
    grid = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    for (label, options), point, sample in itertools.product(chosen, grid, drawn or [{}]):
        parts = [label] if label else []
        parts += [f"{name}={shown(value)}" for name, value in {**point, **sample}.items()]
        yield ", ".join(parts) or "base", {**options, **point, **sample}


def _config(
    sweep: Sweep, label: str, values: Mapping[str, Any], control: Mapping[str, Any] | None = None
) -> TrainConfig:
    try:
        return canonical(sweep.base.with_overrides(**{**values, **(control or {})}))
    except ConfigError as error:
        raise ConfigError(f"{'the control of ' if control else ''}the setting {label!r}: {error}") from error


def _name_controls(sweep: Sweep, controls: Sequence[TrainConfig]) -> dict[str, str]:
    """A label for every control: what it is, and what tells the controls of a sweep apart."""
    unique = {_key(config): config for config in controls}
    rows = {key: config.to_dict() for key, config in unique.items()}
    differing = [name for name in sweep.varying if len({json.dumps(row[name]) for row in rows.values()}) > 1]
    labels = {}
    for key, config in unique.items():
        word = "backbone" if config.form == "none" else "control"
        labels[key] = ", ".join([word, *(f"{name}={shown(rows[key][name])}" for name in differing)])
    return labels


def _distinct(labels: Sequence[str]) -> list[str]:
    """Labels are shortened, so two may have become the same: the second gets a number."""
    return [
        label if labels.index(label) == place else f"{label} ({labels[: place + 1].count(label)})"
        for place, label in enumerate(labels)
    ]


def _folders(settings: Sequence[Setting]) -> dict[str, str]:
    """A name for each setting that every file system takes; a digest tells apart what it would not."""
    words = [re.sub(r"[^\w.=+-]+", "-", setting.label, flags=re.ASCII).strip(".-") for setting in settings]
    counts = Counter(word.lower() for word in words)
    names = {}
    for setting, word in zip(settings, words, strict=True):
        digest = hashlib.blake2b(_key(setting.config).encode(), digest_size=4).hexdigest()
        plain = counts[word.lower()] == 1 and 0 < len(word) <= NAME_LENGTH
        names[setting.label] = word if plain else f"{word[:NAME_LENGTH]}-{digest}"
    return names


def _key(config: TrainConfig) -> str:
    return json.dumps(config.to_dict(), sort_keys=True)
