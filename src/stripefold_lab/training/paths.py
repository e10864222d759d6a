"""The folder of a run: what lies where, and when it may be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from stripefold.atomic import write_text
from stripefold.errors import ConfigError, TrainingError
from stripefold_lab.training.config import TrainConfig
from stripefold_lab.training.locks import locked
from stripefold_lab.training.recipe import load_config
from stripefold_lab.training.resume import differing_option

LOCK = ".lock"
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
    def lock(self) -> Path:
        """Held by the process that works on the run; gone when it ends in order."""
        return self.root / LOCK

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
    def has_begun(self) -> bool:
        """Whether the run left anything that a new one in its folder would lose."""
        return any(path.exists() for path in (self.last, self.best, self.metrics, self.folded, self.summary))

    @property
    def how_to_go_on(self) -> str:
        """For messages."""
        return f"go on with `stripefold train --resume --run-dir {self.root}` (resume=True)"


@contextmanager
def claimed_run(config: TrainConfig) -> Iterator[RunPaths]:
    """The folder of a run, made or reopened, for this process alone.

    Args:
        config: The run's configuration.

    Raises:
        ConfigError: As for ``open_run``; also if another process works on the run.
        TrainingError: If the folder cannot be written.
    """
    with ExitStack() as held:
        root = Path(config.run_dir or "runs").expanduser()
        try:
            root = _new_folder(config) if config.run_dir is None else root
            root.mkdir(parents=True, exist_ok=True)
            refusal = f"another process works on the run in {root}: wait for it, stop it, or choose another run_dir"
            held.enter_context(locked(RunPaths(root).lock, refusal, keep=False))
        except OSError as error:
            raise TrainingError(f"cannot write into run_dir {root}: {error.strerror or error}") from error
        yield open_run(config.with_overrides(run_dir=str(root)))


def open_run(config: TrainConfig) -> RunPaths:
    """Make or reopen the folder of a run and write the resolved configuration into it.

    Args:
        config: The run's configuration, with its folder.

    Raises:
        ConfigError: If the folder holds a run and ``resume`` is False, or holds a run of other options. One that ended
            before its first checkpoint is none: there is nothing of it to keep.
        TrainingError: If the folder cannot be written.
    """
    assert config.run_dir is not None
    paths = RunPaths(Path(config.run_dir).expanduser())
    fresh = not paths.config.exists() or not (config.resume or paths.has_begun)
    if not fresh:
        _check_same(config, paths)
    elif not paths.config.exists() and any(
        path.is_file() and path != paths.lock and not path.match(LEFTOVER) for path in paths.root.rglob("*")
    ):
        raise ConfigError(f"run_dir {paths.root} is not empty and holds no run; choose another")
    try:
        paths.last.parent.mkdir(parents=True, exist_ok=True)
        for leftover in paths.root.rglob(LEFTOVER):  # what a killed process had not finished writing
            leftover.unlink(missing_ok=True)
        if fresh:
            write_config(config, paths)
    except OSError as error:
        raise TrainingError(f"cannot write into run_dir {paths.root}: {error.strerror or error}") from error
    return paths


def write_config(config: TrainConfig, paths: RunPaths) -> None:
    """Write the resolved configuration of a run.

    Args:
        config: What to write.
        paths: The run's.
    """
    import yaml

    values = {**config.to_dict(), "run_dir": str(paths.root), "resume": False, "extend": False}
    write_text(paths.config, str(yaml.safe_dump(values, sort_keys=False)))


def _new_folder(config: TrainConfig) -> Path:
    attention = "plain" if config.form == "none" else f"{config.form}-{config.attention}"
    attention = attention if config.branch is None else f"{config.branch}-{attention}"
    name = f"{config.data.partition(':')[0]}-{config.model.replace('/', '-')}-{attention}-seed{config.seed}"
    folder, number = Path("runs") / name, 2
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # or made by another process at this moment
            folder, number = Path("runs") / f"{name}-{number}", number + 1
        else:
            return folder


def _check_same(config: TrainConfig, paths: RunPaths) -> None:
    if not config.resume:
        raise ConfigError(f"run_dir {paths.root} holds a run already; choose another, or {paths.how_to_go_on}")
    found = differing_option(load_config(paths.config).to_dict(), config)
    if found is not None:
        raise ConfigError(
            f"cannot resume {paths.root}: {found}; resume with the run's own {paths.config.name} (other epochs are "
            "asked for with extend: true, or --epochs beside --resume), or start a new run"
        )
