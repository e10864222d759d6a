"""Values of a configuration: brought to their type, then held against their range and against each other."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stripefold.documents import shown
from stripefold.errors import ConfigError

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig

LARGEST = 2**63
# Inclusive bounds.
LOWER: dict[str, float] = {
    "repeats": 1, "epochs": 1, "batch_size": 1, "image_size": 4, "channels": 1, "limit_train": 1,
    "limit_test": 1, "workers": 0, "threads": 1, "seed": 0, "warmup_epochs": 0, "momentum": 0, "weight_decay": 0,
    "gate_weight_decay": 0, "gradient_clip": 0, "label_smoothing": 0, "mixup": 0, "decay": 0, "learning_rate": 0,
    "observe_every": 0, "observe_images": 1, "devices": 1, "nodes": 1, "timeout": 1,
}  # fmt: skip
# Far above what any machine or run has; beyond, the system, torch or the calendar gives up in words of their own.
UPPER: dict[str, float] = {
    "threads": 1024, "workers": 1024, "devices": 1024, "nodes": 2**16, "timeout": 10**8, "image_size": 2**14,
    "repeats": 1024, "epochs": 10**9, "batch_size": 2**31, "observe_images": 2**31, "mixup": 10**6,
}  # fmt: skip
BELOW_ONE = ("momentum", "label_smoothing")


def coerce(name: str, kind: str, value: Any) -> Any:
    """The value in the field's type; YAML gives lists for tuples, ints for floats, and text for 1e-4.

    Args:
        name: Name of the field.
        kind: Its type, as written.
        value: What was given.

    Raises:
        ConfigError: If the value cannot be of that type.
    """
    optional = kind.endswith("| None")
    base = kind.removesuffix("| None").strip()
    if value is None and optional:
        return None
    if name == "freeze" and isinstance(value, str):
        return (value,)
    if base.startswith("tuple") or (name in ("where", "branch_where") and not isinstance(value, str)):
        return _cast_tuple(name, int if base.startswith("tuple[int") else str, value)
    if base.startswith("Mapping"):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {shown(value)}; give a mapping of names to values")
        _require(all(isinstance(key, str) for key in value), name, value, "give a mapping whose names are texts")
        return dict(value)
    if base == "bool":
        return _require(isinstance(value, bool), name, value, "give true or false")
    if base == "int":
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST
        return _require(fits, name, value, "give a whole number of at most 64 bits")
    if base.startswith("float"):  # psi is a number, or drawn
        return value if name == "psi" and value == "random" else _cast_float(name, value)
    # `precision: 32` reads as a number in YAML, and `form: none` may come as null.
    text = {"precision": str(value), "form": "none" if value is None else value}.get(name, value)
    _require(isinstance(text, str), name, value, "give a text")
    return _require("\0" not in text, name, text, "give a text without zero bytes")


def _require(fits: bool, name: str, value: Any, advice: str) -> Any:
    if not fits:
        raise ConfigError(f"{name} is {shown(value)}; {advice}")
    return value


def _cast_tuple(name: str, kind: type, value: Any) -> tuple[Any, ...]:
    is_list = isinstance(value, (list, tuple)) and all(
        isinstance(item, kind) and not isinstance(item, bool) for item in value
    )
    return tuple(_require(is_list, name, value, f"give a list of {kind.__name__}"))


def _cast_float(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    _require(math.isfinite(number), name, value, "give a finite number")
    return number


def check_range(name: str, value: float | None, least: float) -> None:
    """Refuse a number outside its field's range; None passes.

    Args:
        name: Name of the field.
        value: Its value.
        least: The smallest value it may have.

    Raises:
        ConfigError: Naming the field and the value.
    """
    if value is None:
        return
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}")
    if value > UPPER.get(name, math.inf):
        raise ConfigError(f"{name} is {value}; it may be at most {UPPER[name]}")
    if name in BELOW_ONE and value >= 1:
        raise ConfigError(f"{name} is {value}; it must be below 1")
    if name == "learning_rate" and value == 0:
        raise ConfigError(f"{name} is {value}; it must be above 0")


def check_processes(config: TrainConfig) -> None:
    """Refuse what several processes cannot do, wherever they run.

    Args:
        config: All of it.

    Raises:
        ConfigError: Naming the field and the value.
    """
    world = config.devices * config.nodes
    if config.batch_size % world:
        below, above = config.batch_size // world * world, -(-config.batch_size // world) * world
        near = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"batch_size is {config.batch_size}, and devices x nodes is {world}: the batch of a step is divided "
            f"evenly, set {near}"
        )
    if config.strategy != "auto" and world == 1:
        raise ConfigError(f"strategy is {config.strategy!r}, but devices and nodes are 1: leave it at auto")
    if config.strategy == "fsdp" and config.observe_every:
        raise ConfigError(
            f"observe_every is {config.observe_every}, and with fsdp no process has the whole network: set it to 0 and "
            "observe what the run leaves, or choose ddp"
        )
    for name in ("compile", "channels_last"):
        if config.strategy == "fsdp" and getattr(config, name):
            raise ConfigError(f"{name} is True, which does not go together with fsdp: choose one of them, or ddp")


def check_names(keys: Iterable[str], known: Sequence[str], *, where: str) -> None:
    """Refuse keys that are no option.

    Args:
        keys: The keys found.
        known: The options.
        where: Where the keys were found, for the message.

    Raises:
        ConfigError: Naming the first unknown key and the nearest option.
    """
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(shown(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"options: {', '.join(known)}"
            raise ConfigError(f"unknown option {shown(key)} in {where}; {hint}")
