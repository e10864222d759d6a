"""One run of a sweep, in the process that Ray gives it."""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stripefold.errors import ConfigError
from stripefold_lab.sweep.folder import SweepPaths, TrialOutcome, write_error, write_outcome
from stripefold_lab.users_files import import_files

WAIT_SECONDS = 60.0
"""How long a killed run's process may take to be gone before the run goes on in another."""


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What a run's process must know; plain values, because it may be on another machine.

    Attributes:
        root: The sweep's folder, absolute.
        spec: The text of its ``sweep.yaml``.
        directory: The working directory of the process that started the sweep; paths to data may be relative to it.
        versions: Package -> version there.
        configs: Run -> its options.
        gpus: GPUs of a run.
        imports: Files of the user's that register what the runs name, absolute.
    """

    root: str
    spec: str
    directory: str
    versions: Mapping[str, str]
    configs: Mapping[str, Mapping[str, Any]]
    gpus: float
    imports: tuple[str, ...] = ()


def run_trial(point: Mapping[str, Any], job: TrialJob) -> dict[str, Any]:
    """Train one run to its end, or from its last checkpoint to its end.

    A run that fails is a result as well; what Ray itself may repeat is only a process that was lost.

    Args:
        point: ``{"trial": name}``, as Ray Tune gives it.
        job: What it is part of.

    Returns:
        ``error``, one line or empty, and ``score``, NaN with an error.
    """
    name = str(point["trial"])
    paths = SweepPaths(Path(job.root))
    check_shared(job)  # before anything is written: it could not be found again
    try:
        with _output(paths.log(name)), _alone(paths.run_lock(name)):
            outcome = _train(job, name, paths)
    except Exception as error:
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        write_error(paths, name, f"{traceback.format_exc()}\n{line}\n")
        return {"score": float("nan"), "error": line}
    write_outcome(paths, name, outcome)
    return {"score": outcome.score, "error": ""}


def check_shared(job: TrialJob) -> None:
    """Refuse a machine that does not see the sweep's folder or has other versions.

    Args:
        job: What the run is part of.

    Raises:
        ConfigError: Naming the machine and what differs.
    """
    machine, spec = socket.gethostname(), SweepPaths(Path(job.root)).spec
    seen = spec.read_text(encoding="utf-8") if spec.is_file() else None
    if seen != job.spec:
        raise ConfigError(
            f"machine {machine} does not see the sweep's folder {job.root}: put it on a file system that all machines "
            "of the cluster share, under the same path"
        )
    for package, version in versions().items():
        if version != job.versions[package]:
            raise ConfigError(
                f"machine {machine} has {package} {version}, the sweep was started with {job.versions[package]}: "
                "install the same everywhere, runs would not be comparable"
            )


def versions() -> dict[str, str]:
    """The versions that decide what a run computes."""
    from importlib.metadata import version

    import stripefold

    return {"stripefold": stripefold.__version__, "torch": version("torch")}


def _train(job: TrialJob, name: str, paths: SweepPaths) -> TrialOutcome:
    if not job.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # newer versions of Ray leave them in sight of runs that got none
    if Path(job.directory).is_dir():
        os.chdir(job.directory)
    import_files(job.imports)
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.runner import train
    from stripefold_lab.training.tasks import get_task

    result = train(TrainConfig(**{**job.configs[name], "run_dir": str(paths.run(name)), "resume": True}))
    return TrialOutcome(
        score=result.deployed.score,
        measure=get_task(result.config.task).score.name,
        images=result.deployed.images,
        parameters=sum(parameter.numel() for parameter in result.folded.parameters()),
        seconds=result.seconds,
    )


@contextlib.contextmanager
def _output(log: Path) -> Iterator[None]:
    log.parent.mkdir(exist_ok=True)
    with (
        log.open("a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


def _alone(lock: Path) -> contextlib.AbstractContextManager[None]:
    """Wait until no other process trains this run: that of a driver which was killed may live on for a moment."""
    from stripefold_lab.training.locks import locked

    return locked(lock, f"another process still trains in this run's folder ({lock} is held)", wait=WAIT_SECONDS)
