"""``run_sweep``: from a sweep to its folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stripefold.errors import TrainingError
from stripefold_lab.stdout import time_left
from stripefold_lab.sweep.draw import draw
from stripefold_lab.sweep.folder import SweepPaths, check_free, grow_sweep, open_sweep, read_outcome, read_samples
from stripefold_lab.sweep.picture import import_figure, write_pictures
from stripefold_lab.sweep.result import SweepResult, collect
from stripefold_lab.sweep.session import Machines, import_ray
from stripefold_lab.sweep.table import import_arrow, write_tables
from stripefold_lab.sweep.text import write_texts
from stripefold_lab.sweep.trials import Trial, list_settings, list_trials
from stripefold_lab.training.locks import locked

if TYPE_CHECKING:
    from stripefold_lab.sweep.spec import Sweep

Announce = Callable[[str], None]


def plan_sweep(sweep: Sweep, folder: str | Path) -> SweepResult:
    """What there is to do and what is done, with the table of what is finished; nothing is trained or written.

    Args:
        sweep: The sweep.
        folder: Its folder, which need not exist.

    Raises:
        ConfigError: If a setting is refused, or the folder holds another sweep.
    """
    paths = SweepPaths(Path(folder).expanduser().resolve())
    held = paths.spec.exists()
    drawn = read_samples(sweep, paths) if held else draw(sweep.random, sweep.samples, sweep.draw_seed)
    settings = list_settings(sweep, drawn)
    return collect(sweep, settings, list_trials(sweep, settings), paths)


def run_sweep(
    sweep: Sweep, folder: str | Path, *, machines: Machines | None = None, progress: Announce | None = None
) -> SweepResult:
    """Train every run that is not finished, then write the tables and the picture.

    Whatever killed it, the same call goes on: a finished run is never repeated, one that was under way goes on from its
    last checkpoint, one that failed is tried again.

    Args:
        sweep: The sweep.
        folder: Its folder; with a cluster, one that all its machines share.
        machines: Where the runs are trained, and how many at once; None is this machine, as many as it has CPUs.
        progress: Called with a line whenever a run ends.

    Returns:
        What was found; runs that failed are listed in it.

    Raises:
        ConfigError: If a setting is refused, the folder holds another sweep or is being worked on, Ray, pyarrow or
            matplotlib is not installed, Ray cannot be had, or no machine has room for a run.
        TrainingError: If the folder cannot be written, Ray gives up, or the process was told to end (SIGTERM).
        KeyboardInterrupt: If Ctrl-C was pressed; what is finished is kept.
    """
    machines, tell = machines or Machines(), progress or (lambda line: None)
    for needed in (import_ray, import_arrow, import_figure):
        needed()  # what is missing is told now, not after hours
    paths = SweepPaths(Path(folder).expanduser().resolve())
    if not paths.spec.exists():  # and a refused sweep leaves no folder
        list_settings(sweep, draw(sweep.random, sweep.samples, sweep.draw_seed))
    check_free(paths)
    with _alone(paths):  # before the sweep is written: of two that start at once, one is refused
        paths, drawn = open_sweep(sweep, Path(folder))
        settings = list_settings(sweep, drawn)
        trials = list_trials(sweep, settings)
        grow_sweep(sweep, paths, drawn)
        _train(trials, paths, machines, tell)
        result = collect(sweep, settings, trials, paths)
        return write_result(result)


def write_result(result: SweepResult) -> SweepResult:
    """Write the tables and the pictures.

    Args:
        result: What the sweep found.

    Returns:
        The same with the files' names.
    """
    return dataclasses.replace(result, files=(*write_tables(result), *write_texts(result), *write_pictures(result)))


def _train(trials: Sequence[Trial], paths: SweepPaths, machines: Machines, tell: Announce) -> None:
    waiting = [trial for trial in trials if read_outcome(paths, trial) is None]
    done = len(trials) - len(waiting)
    if done:
        tell(f"{done} of {len(trials)} runs are finished")
    if not waiting:
        return
    tell(f"{len(waiting)} runs to train; what they print goes to {paths.log(waiting[0].name).parent}")
    ended, started = [done], time.monotonic()
    width = len(str(len(trials)))

    def told(name: str, score: float | None, error: str) -> None:
        ended[0] += 1
        left = (time.monotonic() - started) * (len(trials) - ended[0]) / (ended[0] - done)
        tell(
            f"[{ended[0]:{width}}/{len(trials)}] {name}: "
            + (f"failed, {error}" if score is None else f"{score:.2%}")
            + (f", {time_left(left)}" if left > 1 else "")
        )

    def lost(name: str) -> None:
        tell(f"{name}: its process was lost, it goes on from its last checkpoint")

    from stripefold_lab.sweep.launch import Listener, launch

    try:
        launch(waiting, paths, machines, Listener(told, lost))
    except (KeyboardInterrupt, SystemExit) as error:  # the second is what Ray makes of SIGTERM
        finished = sum(read_outcome(paths, trial) is not None for trial in trials)
        kept = f"{finished} of {len(trials)} runs are finished, the same command goes on"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"stopped by Ctrl-C; {kept}") from error
        raise TrainingError(f"stopped from outside; {kept}") from error


@contextmanager
def _alone(paths: SweepPaths) -> Iterator[None]:
    with ExitStack() as held:
        try:
            paths.lock.parent.mkdir(parents=True, exist_ok=True)
            refusal = f"another process works on the sweep in {paths.root}; wait for it, or stop it"
            held.enter_context(locked(paths.lock, refusal))
        except OSError as error:
            raise TrainingError(f"cannot write into {paths.root}: {error.strerror or error}") from error
        yield
