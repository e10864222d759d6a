"""What a sweep compares: a base, what varies, over which seeds, and against which control."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stripefold.documents import shown
from stripefold.errors import ConfigError
from stripefold_lab.training.config import FREE_ON_RESUME, TrainConfig, check_known

MOST_RUNS = 100_000
BACKBONE: Mapping[str, Any] = {"form": "none"}
FIXED = {
    "seed": "give it as seeds",
    "task": "scores of different tasks cannot be compared",
    **dict.fromkeys(FREE_ON_RESUME, "it does not change what is learned"),
}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Every setting x every point of the grid x every drawn sample, each under every seed.

    Attributes:
        name: A word for it.
        title: What is compared, for the table and the picture.
        base: The configuration that all runs share; ``run_dir``, ``resume`` and ``seed`` are the sweep's own.
        settings: Label -> options, for what is no grid; empty is one setting without changes.
        grid: Option -> its values.
        random: Option -> ``{distribution: its arguments}``, such as ``{"loguniform": [1e-3, 1]}``, as in Ray Tune.
        samples: How many samples are drawn of ``random``.
        draw_seed: The samples derive from it, and from nothing else.
        seeds: Every setting is trained once with each.
        control: The options that turn a run into the one it is compared with, under the same seed and with everything
            else equal: the backbone (``form: none``) unless given; None compares nothing.

    Raises:
        ConfigError: If an option is unknown, cannot vary, varies twice, or has no values; or the base is a run of
            several processes.
    """

    name: str = "sweep"
    title: str = ""
    base: TrainConfig
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    random: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    samples: int = 0
    draw_seed: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    control: Mapping[str, Any] | None = field(default_factory=lambda: dict(BACKBONE))

    def __post_init__(self) -> None:
        """Check everything that can be checked without drawing."""
        _check_shapes(self)
        _check_alone(self.base)
        for place, options in (("grid", self.grid), ("random", self.random), ("control", self.control or {})):
            _check_varies(options, place)
        for label, options in self.settings.items():
            _check_varies(options, f"settings, {label}")
        _check_once(self)
        _check_count(self)
        if bool(self.random) != (self.samples > 0):
            raise ConfigError(f"samples is {self.samples} with {len(self.random)} options under random; give both")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds is {list(self.seeds)}; give a number of seeds, or a list of different ones")
        for seed in self.seeds:
            self.base.with_overrides(seed=seed)

    @property
    def varying(self) -> tuple[str, ...]:
        """The options that settings, grid and random change, in their order."""
        chosen = [name for options in self.settings.values() for name in options]
        return tuple(dict.fromkeys([*chosen, *self.grid, *self.random]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as ``sweep.yaml`` holds them; the options that change no number are left out."""
        own = {"run_dir", "resume", "seed", *FREE_ON_RESUME}
        return {
            "base": {name: value for name, value in self.base.to_dict().items() if name not in own},
            "settings": {label: dict(options) for label, options in self.settings.items()},
            "grid": {name: list(values) for name, values in self.grid.items()},
            "random": {name: dict(distribution) for name, distribution in self.random.items()},
            "samples": self.samples,
            "draw_seed": self.draw_seed,
            "seeds": list(self.seeds),
            "control": None if self.control is None else dict(self.control),
        }


@dataclass(frozen=True, kw_only=True)
class Specification:
    """What ``sweep.yaml`` holds: a sweep as plain values, and the samples that were drawn for it."""

    sweep: str
    base: dict[str, Any]
    settings: dict[str, Any]
    grid: dict[str, Any]
    random: dict[str, Any]
    samples: int
    draw_seed: int
    seeds: list[int]
    control: dict[str, Any] | None
    drawn: list[dict[str, Any]]


def _check_shapes(sweep: Sweep) -> None:
    """YAML gives anything anywhere."""
    for name in ("settings", "grid", "random"):
        if not isinstance(getattr(sweep, name), Mapping):
            raise ConfigError(f"{name} is {shown(getattr(sweep, name))}; give a mapping")
    settings: Mapping[Any, Any] = sweep.settings
    for label, options in settings.items():
        if not isinstance(options, Mapping) or not isinstance(label, str):
            found = f"settings, {shown(label)} is {shown(options)}"
            raise ConfigError(f"{found}; give a label and a mapping of options to values")
    for name, values in sweep.grid.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise ConfigError(f"grid, {name} is {shown(values)}; give a list of values")
    if sweep.control is not None and not isinstance(sweep.control, Mapping):
        raise ConfigError(f"control is {shown(sweep.control)}; give a mapping of options to values, or null for none")
    for name in ("samples", "draw_seed"):
        number = getattr(sweep, name)
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ConfigError(f"{name} is {shown(number)}; give a whole number from 0 on")


def _check_alone(base: TrainConfig) -> None:
    """Ray gives each run one process; every run would wait for others that nobody starts."""
    if base.devices * base.nodes > 1:
        raise ConfigError(
            f"the base has devices {base.devices} and nodes {base.nodes}, and each run of a sweep is one process: set "
            "devices=1, nodes=1 and strategy=auto"
        )


def _check_varies(options: Iterable[str], where: str) -> None:
    check_known(options, where=where)
    for name in options:
        if name in FIXED:
            raise ConfigError(f"{name} cannot vary ({where}): {FIXED[name]}")


def _check_count(sweep: Sweep) -> None:
    """A grid multiplies: what nobody could train is a slip, and listing it takes the memory."""
    points = max(1, len(sweep.settings)) * math.prod(len(values) for values in sweep.grid.values())
    runs = points * max(1, sweep.samples) * len(sweep.seeds)
    if runs > MOST_RUNS:
        raise ConfigError(f"the sweep has {runs:.6g} runs, settings x grid x samples x seeds; it may have {MOST_RUNS}")


def _check_once(sweep: Sweep) -> None:
    chosen = {name for options in sweep.settings.values() for name in options}
    for first, second, places in (
        (chosen, set(sweep.grid), "settings and grid"),
        (chosen, set(sweep.random), "settings and random"),
        (set(sweep.grid), set(sweep.random), "grid and random"),
    ):
        if twice := sorted(first & second):
            raise ConfigError(f"{twice[0]} varies in both {places}; leave it in one of them")
