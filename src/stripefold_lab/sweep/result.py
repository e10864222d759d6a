"""What a sweep found: one row per setting, from the runs that are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stripefold_lab.sweep.folder import SweepPaths, TrialOutcome, outcome_fault, read_error, read_outcome
from stripefold_lab.sweep.statistics import LEVEL, Estimate, estimate, joint_level, paired

if TYPE_CHECKING:
    from stripefold_lab.sweep.spec import Sweep
    from stripefold_lab.sweep.trials import Setting, Trial
    from stripefold_lab.training.task import TaskMeasure


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """One setting.

    Attributes:
        setting: What was trained.
        scores: Seed -> score after the last epoch, 0 to 1, of the finished runs.
        score: Of these; None where no run is finished.
        difference: Of the paired differences to the control, by seed; None for a control, or without a pair.
        joint: The same with the interval that holds for all comparisons of the sweep together.
    """

    setting: Setting
    scores: Mapping[int, float]
    score: Estimate | None
    difference: Estimate | None
    joint: Estimate | None

    @property
    def stands_out(self) -> bool:
        """Whether 0 lies outside the interval that holds for all comparisons together."""
        if self.joint is None or self.joint.low is None or self.joint.high is None:
            return False
        return self.joint.low > 0 or self.joint.high < 0


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        folder: The sweep's folder.
        sweep: What was asked for.
        trials: All runs.
        outcomes: Run -> what it is judged by; the finished ones.
        failed: Run -> why it failed, one line.
        rows: One per setting, in the sweep's order.
        files: The tables and the pictures.
    """

    folder: Path
    sweep: Sweep
    trials: Sequence[Trial]
    outcomes: Mapping[str, TrialOutcome]
    failed: Mapping[str, str]
    rows: Sequence[SettingRow]
    files: Sequence[Path] = ()

    @property
    def comparisons(self) -> int:
        """How many settings are compared with a control."""
        return sum(row.setting.control is not None for row in self.rows)

    def state(self, trial: str) -> str:
        """``finished``, ``failed``, ``begun`` or ``waiting``.

        Args:
            trial: Name of a run.
        """
        if trial in self.outcomes:
            return "finished"
        begun = SweepPaths(self.folder).run(trial).is_dir()
        return "failed" if trial in self.failed else "begun" if begun else "waiting"

    @property
    def control_word(self) -> str:
        """What the settings are compared with, in words."""
        words = {row.setting.control for row in self.rows if row.setting.control is not None}
        return "the backbone" if all(word.startswith("backbone") for word in words) else "its control"

    @property
    def measure(self) -> TaskMeasure:
        """What the runs are judged by: accuracy, mIoU or mAP50."""
        from stripefold_lab.training.tasks import get_task

        return get_task(self.sweep.base.task).score


def collect(sweep: Sweep, settings: Sequence[Setting], trials: Sequence[Trial], paths: SweepPaths) -> SweepResult:
    """Read what lies in a sweep's folder.

    Args:
        sweep: The sweep.
        settings: Its settings.
        trials: Its runs.
        paths: Its folder.
    """
    found = {trial.name: read_outcome(paths, trial) for trial in trials}
    outcomes = {name: outcome for name, outcome in found.items() if outcome is not None}
    unfinished = [trial for trial in trials if trial.name not in outcomes]
    errors = {trial.name: read_error(paths, trial.name) or outcome_fault(paths, trial) for trial in unfinished}
    scores: dict[str, dict[int, float]] = {setting.label: {} for setting in settings}
    for trial in trials:
        if trial.name in outcomes:
            scores[trial.setting][trial.config.seed] = outcomes[trial.name].score
    return SweepResult(
        folder=paths.root,
        sweep=sweep,
        trials=trials,
        outcomes=outcomes,
        failed={name: error for name, error in errors.items() if error is not None},
        rows=compare(settings, scores),
    )


def compare(settings: Sequence[Setting], scores: Mapping[str, Mapping[int, float]]) -> list[SettingRow]:
    """One row per setting.

    Args:
        settings: In the rows' order.
        scores: Label of a setting -> seed -> score.
    """
    comparisons = sum(setting.control is not None for setting in settings)
    level = joint_level(max(1, comparisons), LEVEL)
    rows = []
    for setting in settings:
        mine = scores[setting.label]
        differences = [] if setting.control is None else paired(mine, scores[setting.control])
        rows.append(
            SettingRow(
                setting=setting,
                scores=mine,
                score=estimate(list(mine.values())),
                difference=estimate(differences),
                joint=estimate(differences, level=level),
            )
        )
    return rows
