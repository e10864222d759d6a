"""What a run is resumed from, held against what is asked for: the same options, the same data."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stripefold.atomic import atomic_path
from stripefold.errors import CheckpointError, ConfigError
from stripefold_lab.training.checkpoint import KEY, read_checkpoint
from stripefold_lab.training.config import FREE_ON_RESUME, TrainConfig
from stripefold_lab.training.fingerprint import differing_data

if TYPE_CHECKING:
    from stripefold_lab.training.paths import RunPaths

RECORD = "EpochRecord"
"""Under which name a checkpoint keeps the epochs' rows."""
OTHER_RUN = (
    "another run than is asked for: resume with the options that it was trained with (other epochs are asked for with "
    "extend: true, or --epochs beside --resume), or start a new run"
)
_LONGEST = 80


def differing_option(before: Mapping[str, Any], config: TrainConfig) -> str | None:
    """The first option that a run was trained with otherwise than is asked for, with both values; None where none is.

    Args:
        before: The options it was trained with; one that it does not know had its default.
        config: What is asked for. Where it extends the run, epochs may differ.
    """
    was, now = {**TrainConfig().to_dict(), **before}, config.to_dict()
    free = FREE_ON_RESUME | ({"epochs"} if config.extend else frozenset())
    for name in (name for name in was if name not in free):
        if name not in now:
            return f"option {name!r}, which was {_short(was[name])}, is of another version of stripefold"
        if was[name] != now[name]:
            return f"{name} was {_short(was[name])} and is now {_short(now[name])}"
    return None


def check_resumable(config: TrainConfig, paths: RunPaths, data: Mapping[str, Any]) -> int:
    """Refuse a last checkpoint of other options or of other data; reading it also proves it sound.

    Args:
        config: What is asked for.
        paths: The run's.
        data: What ``describe`` says about the data that lies there now.

    Returns:
        How many epochs the run has behind it; 0 for a new one.

    Raises:
        CheckpointError: If the checkpoint is damaged.
        ConfigError: Naming the first difference, with both values; or if only the last checkpoint is gone.
    """
    if not paths.last.exists():
        _check_nothing_lost(paths)
        return 0
    checkpoint = read_checkpoint(paths.last)
    about = checkpoint[KEY]
    if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
        raise CheckpointError(f"{paths.last} does not say which run it is of: start a new run")
    found = differing_option(about["config"], config)
    if found is not None:
        raise ConfigError(f"cannot resume {paths.root}: {found}; {paths.last.name} is of {OTHER_RUN}")
    changed = differing_data(about, data)
    if changed is not None:
        raise ConfigError(
            f"cannot resume {paths.root}: {changed} ({config.data}); give it the data it was trained on, or start a "
            "new run"
        )
    behind = len(rows_of(checkpoint, paths))
    if behind > config.epochs:
        raise ConfigError(
            f"cannot resume {paths.root}: it has finished {behind} epochs, and epochs is {config.epochs}: set more"
        )
    return behind


def _check_nothing_lost(paths: RunPaths) -> None:
    """Refuse to begin anew over what is left of a run whose last checkpoint is gone."""
    others = [*sorted(paths.last.parent.glob("*.ckpt")), paths.metrics, paths.folded, paths.summary]
    left = [str(path.relative_to(paths.root)) for path in others if path.exists()]
    if left:
        raise ConfigError(
            f"cannot resume {paths.root}: checkpoints/{paths.last.name} is missing, and {', '.join(left)} would be "
            "overwritten; put it back (a copy of another checkpoint of the run does), or choose another run_dir"
        )


def rows_of(checkpoint: Mapping[str, Any], paths: RunPaths) -> list[dict[str, float]]:
    """The epochs' rows in a checkpoint.

    Args:
        checkpoint: What ``read_checkpoint`` gave.
        paths: The run's.

    Raises:
        CheckpointError: If it has none.
    """
    try:
        rows = checkpoint["callbacks"][RECORD]["rows"]
        return [dict(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{paths.last} does not hold the rows of its epochs: start a new run") from error


def restore_best(paths: RunPaths, score: str) -> None:
    """Make the last checkpoint the best one where its epoch is: a run may be killed before it has written both.

    Args:
        paths: The run's.
        score: The column that decides.
    """
    rows = rows_of(read_checkpoint(paths.last), paths)
    if rows and all(rows[-1][score] > row[score] for row in rows[:-1]):
        with atomic_path(paths.best) as temporary:
            shutil.copyfile(paths.last, temporary)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."
