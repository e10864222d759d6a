"""The folder of a sweep: what lies where, which sweep it holds, and which of its runs are finished."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stripefold.atomic import write_text
from stripefold.documents import DocumentError, read_json, read_text, shown
from stripefold.errors import ConfigError, TrainingError
from stripefold.records import record
from stripefold_lab.sweep.draw import draw
from stripefold_lab.sweep.spec import Specification
from stripefold_lab.training.paths import RunPaths
from stripefold_lab.training.recipe import load_config
from stripefold_lab.training.resume import differing_option
from stripefold_lab.training.tasks import TASKS, get_task
from stripefold_lab.training.unused_options import DEFAULTS
from stripefold_lab.yaml_documents import read_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stripefold_lab.sweep.spec import Sweep
    from stripefold_lab.sweep.trials import Trial


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """What a finished run is judged by.

    Attributes:
        score: Its task's measure on the test images after the last epoch, of the deployed network, 0 to 1.
        measure: Name of that measure: ``accuracy``, ``miou`` or ``map50``.
        images: How many test images there were.
        parameters: Parameters of the deployed network.
        seconds: Wall-clock time of the training part of the process that finished the run.

    Raises:
        ConfigError: If a value is none that a finished run can have; it would be taken for a finding.
    """

    score: float
    measure: str
    images: int
    parameters: int
    seconds: float

    def __post_init__(self) -> None:
        if self.measure not in {get_task(name).score.name for name in TASKS}:
            raise ConfigError(f"its measure is {self.measure!r}, which no task is judged by")
        for name, low, high in (("score", 0, 1), ("images", 1, inf), ("parameters", 0, inf), ("seconds", 0, inf)):
            value = getattr(self, name)
            kinds = (int,) if name in ("images", "parameters") else (int, float)
            fits = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high and value != inf
            if not fits:  # also not a number, which lies between nothing
                raise ConfigError(f"its {name} is {value!r}, which is no {name} of a finished run")


@dataclass(frozen=True)
class SweepPaths:
    """Where a sweep keeps its files.

    Attributes:
        root: The sweep's folder.
    """

    root: Path

    @property
    def spec(self) -> Path:
        """What the sweep compares, with everything resolved and drawn."""
        return self.root / "sweep.yaml"

    @property
    def lock(self) -> Path:
        """Held by the one process that works on the sweep."""
        return self.root / "ray" / "sweep.lock"

    @property
    def ray(self) -> Path:
        """Ray Tune's own state; nothing is read back from it."""
        return self.root / "ray"

    def run(self, trial: str) -> Path:
        """The folder of a run."""
        return self.root / "runs" / trial

    def run_lock(self, trial: str) -> Path:
        """Held by the process that trains the run."""
        return self.root / "ray" / "locks" / f"{trial}.lock"

    def outcome(self, trial: str) -> Path:
        """What a finished run is judged by."""
        return self.root / "outcomes" / f"{trial}.json"

    def log(self, trial: str) -> Path:
        """What a run printed."""
        return self.root / "logs" / f"{trial}.log"

    def error(self, trial: str) -> Path:
        """Why a run failed."""
        return self.root / "errors" / f"{trial}.txt"


def open_sweep(sweep: Sweep, folder: Path) -> tuple[SweepPaths, list[dict[str, Any]]]:
    """Make or reopen the folder of a sweep.

    Args:
        sweep: The sweep.
        folder: Its folder.

    Returns:
        The paths, and the samples of the random search: those drawn when the folder was made.

    Raises:
        ConfigError: If the folder holds another sweep, or something else.
        TrainingError: If it cannot be written.
    """
    paths = SweepPaths(folder.expanduser().resolve())
    check_free(paths)
    held = paths.spec.exists()
    drawn = read_samples(sweep, paths) if held else draw(sweep.random, sweep.samples, sweep.draw_seed)
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        if not held:
            write_text(paths.spec, _to_yaml(sweep, drawn))  # first: it makes the folder a sweep's
        paths.run_lock("").parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot write into {paths.root}: {error.strerror or error}") from error
    return paths, drawn


def check_free(paths: SweepPaths) -> None:
    """Refuse a folder that holds something else than a sweep.

    Args:
        paths: The folder.

    Raises:
        ConfigError: If it does.
    """
    # Where the lock lies is made before the folder is a sweep's.
    others = (path for path in paths.root.glob("[!.]*") if path != paths.ray)
    if paths.root.is_file() or (not paths.spec.exists() and any(others)):
        raise ConfigError(f"{paths.root} is not empty and holds no sweep; choose another folder")


def grow_sweep(sweep: Sweep, paths: SweepPaths, drawn: list[dict[str, Any]]) -> None:
    """Write down seeds that were added. Only the process that holds the sweep's lock may: its runs compare the file.

    Args:
        sweep: The sweep that the folder holds, perhaps with more seeds.
        paths: Its folder.
        drawn: The samples of its random search.

    Raises:
        TrainingError: If the file cannot be written.
    """
    text = _to_yaml(sweep, drawn)
    try:
        if paths.spec.read_text(encoding="utf-8") != text:
            write_text(paths.spec, text)
    except OSError as error:
        raise TrainingError(f"cannot write {paths.spec}: {error.strerror or error}") from error


def read_samples(sweep: Sweep, paths: SweepPaths) -> list[dict[str, Any]]:
    """The samples that a folder's sweep has drawn.

    Args:
        sweep: The sweep that the folder must hold.
        paths: The folder.

    Raises:
        ConfigError: If it holds another sweep (more seeds are none), or its ``sweep.yaml`` cannot be read.
    """
    try:
        held = record(Specification, read_yaml(paths.spec))
    except DocumentError as error:
        raise ConfigError(f"{paths.spec} cannot be read ({error}); choose another folder") from error
    for name, was, now in _differences(asdict(held), sweep.to_dict()):
        if name == "seeds" and set(was) < set(now):
            continue
        raise ConfigError(
            f"{paths.root} holds another sweep: {name} was {shown(was)} and is now {shown(now)}; go on with the same "
            "command and file, or choose another folder"
        )
    if len(held.drawn) != sweep.samples or any(sample.keys() != sweep.random.keys() for sample in held.drawn):
        raise ConfigError(f"{paths.spec} is damaged: its drawn samples are not of the sweep; choose another folder")
    return held.drawn


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What differs; an option that is younger than the folder had its default then."""
    was, new = ({**DEFAULTS, **each, **each["base"]} for each in (before, now))
    names = [name for name in dict.fromkeys([*was, *new]) if name not in ("base", "sweep", "drawn")]
    return [(name, was.get(name), new.get(name)) for name in names if was.get(name) != new.get(name)]


def _to_yaml(sweep: Sweep, drawn: list[dict[str, Any]]) -> str:
    import yaml

    values = {"sweep": sweep.name, **sweep.to_dict(), "drawn": drawn}
    return str(yaml.safe_dump(values, sort_keys=False))


def read_outcome(paths: SweepPaths, trial: Trial) -> TrialOutcome | None:
    """What a run is judged by, or None where it is not finished: not trained to its end, or with other options.

    Args:
        paths: The sweep's folder.
        trial: The run.
    """
    run = RunPaths(paths.run(trial.name))
    if not (run.summary.is_file() and paths.outcome(trial.name).is_file()):
        return None
    try:
        before = load_config(run.config).to_dict()
        outcome = _load_outcome(paths, trial)
    except (ConfigError, DocumentError):
        return None
    return outcome if differing_option(before, trial.config) is None else None


def outcome_fault(paths: SweepPaths, trial: Trial) -> str | None:
    """Why what a run is judged by cannot be used, such as a score that is not a number; None where nothing is wrong.

    Args:
        paths: The sweep's folder.
        trial: The run.
    """
    if not paths.outcome(trial.name).is_file():
        return None
    try:
        _load_outcome(paths, trial)
    except (ConfigError, DocumentError) as error:
        return f"{paths.outcome(trial.name)} is damaged: {error}"
    return None


def _load_outcome(paths: SweepPaths, trial: Trial) -> TrialOutcome:
    outcome = record(TrialOutcome, read_json(paths.outcome(trial.name)))
    if outcome.measure != get_task(trial.config.task).score.name:
        raise ConfigError(f"its measure is {outcome.measure!r}, not that of the task {trial.config.task!r}")
    return outcome


def write_outcome(paths: SweepPaths, trial: str, outcome: TrialOutcome) -> None:
    """Write down what a run is judged by, and forget why it failed before.

    Args:
        paths: The sweep's folder.
        trial: Name of the run.
        outcome: What to write.
    """
    paths.outcome(trial).parent.mkdir(exist_ok=True)
    write_text(paths.outcome(trial), json.dumps(asdict(outcome)))
    paths.error(trial).unlink(missing_ok=True)


def write_error(paths: SweepPaths, trial: str, text: str) -> None:
    """Write down why a run failed.

    Args:
        paths: The sweep's folder.
        trial: Name of the run.
        text: The error, its one line last.
    """
    paths.error(trial).parent.mkdir(exist_ok=True)
    write_text(paths.error(trial), text)


def read_error(paths: SweepPaths, trial: str) -> str | None:
    """The last line of why a run failed; None where it did not.

    Args:
        paths: The sweep's folder.
        trial: Name of the run.
    """
    if not paths.error(trial).is_file():
        return None
    try:
        lines = read_text(paths.error(trial)).split("\n")
    except DocumentError as error:
        return f"the reason cannot be read ({error})"
    return next((line.strip() for line in reversed(lines) if line.strip()), "no reason was given")
