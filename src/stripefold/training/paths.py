"""The folder of a run: what lies where, and when it may be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stripefold.atomic import write_text
from stripefold.errors import ConfigError, TrainingError
from stripefold.training.config import FREE_ON_RESUME, TrainConfig
from stripefold.training.recipe import load_config

if TYPE_CHECKING:
    from collections.abc import Iterable


LEFTOVER = ".*.part"
"""What a process that was killed had not finished writing; one that died early leaves nothing else."""


@dataclass(frozen=True)
class RunPaths:
    """Where a run keeps its files.

    Attributes:
        root: The run's folder.
    """

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One row per epoch."""
        return self.root / "metrics.csv"

    @property
    def last(self) -> Path:
        """Checkpoint of the last epoch."""
        return self.root / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint of the epoch with the highest test accuracy."""
        return self.root / "checkpoints" / "best.ckpt"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def folded(self) -> Path:
        """The deployed weights."""
        return self.root / "folded.safetensors"

    @property
    def stripes(self) -> Path:
        """What was observed of the gates over training."""
        return self.root / "stripes"

    @property
    def summary(self) -> Path:
        """What happened, to read."""
        return self.root / "summary.md"

    @property
    def how_to_go_on(self) -> str:
        """For messages."""
        return f"go on with `stripefold train --resume --run-dir {self.root}` (resume=True)"


def open_run(config: TrainConfig) -> RunPaths:
    """Make or reopen the folder of a run and write the resolved configuration into it.

    Args:
        config: The run's configuration.

    Raises:
        ConfigError: If the folder holds a run and ``resume`` is False, or holds a run of other options.
        TrainingError: If the folder cannot be written.
    """
    paths = RunPaths(_new_folder(config) if config.run_dir is None else Path(config.run_dir).expanduser())
    if paths.config.exists():
        _check_same(config, paths)
    elif any(path.is_file() and not path.match(LEFTOVER) for path in paths.root.rglob("*")):
        raise ConfigError(f"run_dir {paths.root} is not empty and holds no run; choose another")
    try:
        paths.last.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers([paths.root, paths.last.parent])
        if not paths.config.exists():
            write_text(paths.config, _to_yaml(config, paths))
    except OSError as error:
        raise TrainingError(f"cannot write into run_dir {paths.root}: {error.strerror or error}") from error
    return paths


def _new_folder(config: TrainConfig) -> Path:
    attention = "plain" if config.form == "none" else f"{config.form}-{config.attention}"
    attention = attention if config.branch is None else f"{config.branch}-{attention}"
    name = f"{config.data.partition(':')[0]}-{config.model.replace('/', '-')}-{attention}-seed{config.seed}"
    number, folder = 2, Path("runs") / name
    while folder.exists():
        folder = Path("runs") / f"{name}-{number}"
        number += 1
    return folder


def _to_yaml(config: TrainConfig, paths: RunPaths) -> str:
    import yaml

    values = {**config.to_dict(), "run_dir": str(paths.root), "resume": False}
    return str(yaml.safe_dump(values, sort_keys=False))


def _check_same(config: TrainConfig, paths: RunPaths) -> None:
    if not config.resume:
        raise ConfigError(f"run_dir {paths.root} holds a run already; choose another, or {paths.how_to_go_on}")
    before, now = load_config(paths.config).to_dict(), config.to_dict()
    for name, value in before.items():
        if name not in FREE_ON_RESUME and now[name] != value:
            raise ConfigError(
                f"cannot resume {paths.root}: {name} was {value!r} and is now {now[name]!r}; resume with the run's own "
                f"{paths.config.name}, or start a new run"
            )


def _remove_leftovers(folders: Iterable[Path]) -> None:
    """Take away what a killed process had not finished writing."""
    for folder in folders:
        for leftover in folder.glob(LEFTOVER):
            leftover.unlink(missing_ok=True)
