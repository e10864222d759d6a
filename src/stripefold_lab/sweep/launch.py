"""The runs that are still to do, handed to Ray Tune."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stripefold.errors import ConfigError, TrainingError
from stripefold_lab.sweep.folder import SweepPaths, write_error
from stripefold_lab.sweep.session import Interrupts, Machines, ray_session
from stripefold_lab.sweep.trial import TrialJob, run_trial, versions
from stripefold_lab.users_files import imported_files

if TYPE_CHECKING:
    from stripefold_lab.sweep.trials import Trial

LOST_PROCESSES = 2
"""So often is a run taken up again whose process or machine was lost; an error of its own is final."""


@dataclass(frozen=True)
class Listener:
    """Who is told what becomes of the runs.

    Attributes:
        ended: Called with name, score (None if it failed) and error, whenever a run ends.
        lost: Called with the name whenever a run's process was lost and it is taken up again.
    """

    ended: Callable[[str, float | None, str], None]
    lost: Callable[[str], None]


def launch(trials: Sequence[Trial], paths: SweepPaths, machines: Machines, listener: Listener) -> None:
    """Train what is not finished.

    Args:
        trials: The runs to do, at least one.
        paths: The sweep's folder.
        machines: Where.
        listener: Who is told.

    Raises:
        ConfigError: If Ray cannot be had, or no machine has room for a run.
        TrainingError: If Ray gives up on the whole sweep.
    """
    with Interrupts() as interrupts, ray_session(machines.address, interrupts) as ray:
        resources = _resources(trials, machines, [node for node in ray.nodes() if node["Alive"]])
        job = TrialJob(
            root=str(paths.root),
            spec=paths.spec.read_text(encoding="utf-8"),
            directory=str(Path.cwd()),
            versions=versions(),
            configs={trial.name: trial.config.to_dict() for trial in trials},
            gpus=resources["GPU"],
            imports=imported_files(),
        )
        try:
            ends = _callback(ray.tune, paths, listener, interrupts)
            _tuner(ray.tune, job, resources, machines.parallel, ends).fit()
            interrupts.check()
        except (ray.exceptions.RayError, ray.tune.TuneError) as error:
            interrupts.check()
            raise TrainingError(f"Ray gave up: {' '.join(str(error).split())}; the same command goes on") from error


def _resources(trials: Sequence[Trial], machines: Machines, nodes: Sequence[Any]) -> dict[str, float]:
    """What one run is given; refused where no machine of the cluster has as much, for Ray would wait for ever."""
    offered = [node["Resources"] for node in nodes]
    gpus = machines.gpus
    if gpus is None:
        gpus = float(_may_use_gpus(trials) and any(each.get("GPU", 0) >= 1 for each in offered))
    wanted = {"CPU": machines.cpus or float(max(trial.config.threads or 1 for trial in trials)), "GPU": gpus}
    if not any(all(each.get(name, 0) >= amount for name, amount in wanted.items()) for each in offered):
        there = "; ".join(f"{each.get('CPU', 0):g} CPU, {each.get('GPU', 0):g} GPU" for each in offered)
        raise ConfigError(
            f"no machine has room for a run with {wanted['CPU']:g} CPU and {wanted['GPU']:g} GPU (there are: {there}); "
            "ask for less with cpus and gpus"
        )
    return wanted


def _may_use_gpus(trials: Sequence[Trial]) -> bool:
    return any(trial.config.accelerator != "cpu" for trial in trials)


def _tuner(tune: Any, job: TrialJob, resources: dict[str, float], parallel: int | None, ends: Any) -> Any:
    def called(trial: Any) -> str:
        return str(trial.config["trial"])

    return tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, job=job), resources),
        param_space={"trial": tune.grid_search(list(job.configs))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=parallel,
            reuse_actors=False,  # a process of its own each: nothing of one run is left for the next
            trial_name_creator=called,
            trial_dirname_creator=called,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(SweepPaths(Path(job.root)).ray),
            verbose=0,
            callbacks=[ends],
            failure_config=tune.FailureConfig(max_failures=LOST_PROCESSES),
        ),
    )


def _callback(tune: Any, paths: SweepPaths, listener: Listener, interrupts: Interrupts) -> Any:
    """What Tune calls when a run ends, with a result or because its process was lost too often, and what in between."""

    class Ends(tune.Callback):
        def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
            interrupts.check()

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            listener.lost(trial.config["trial"])

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            result = trial.last_result
            listener.ended(trial.config["trial"], None if result["error"] else result["score"], result["error"])

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            cause = trial.get_pickled_error()
            text = str(cause).strip() or type(cause).__name__
            write_error(paths, trial.config["trial"], text)
            listener.ended(trial.config["trial"], None, text.splitlines()[-1].strip())

    return Ends()
