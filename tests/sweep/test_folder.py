"""The folder of a sweep: whose it is, and what in it is finished."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
import torch

from stripefold.errors import ConfigError, TrainingError
from stripefold_lab.sweep import Sweep, plan_sweep, run_sweep
from stripefold_lab.sweep.folder import (
    SweepPaths,
    TrialOutcome,
    grow_sweep,
    open_sweep,
    read_error,
    read_outcome,
    write_error,
    write_outcome,
)
from stripefold_lab.training.paths import RunPaths, claimed_run, open_run
from tests.sweep.conftest import Room

OUTCOME = TrialOutcome(score=0.5, measure="accuracy", images=64, parameters=10, seconds=1.0)


def finish(room: Room, place: int, score: float = 0.5) -> None:
    """What a finished run leaves, as far as a sweep looks at it."""
    trial = room.trials[place]
    run = RunPaths(room.paths.run(trial.name))
    open_run(trial.config.with_overrides(run_dir=str(run.root), resume=True))
    run.summary.write_text("done", encoding="utf-8")
    write_outcome(room.paths, trial.name, dataclasses.replace(OUTCOME, score=score))


def test_the_same_sweep_is_taken_up(room: Room, tmp_path: Path) -> None:
    same = dataclasses.replace(room.sweep, title="another title", base=room.sweep.base.with_overrides(workers=2))
    assert open_sweep(same, tmp_path / "sweep")[1] == []


def test_drawn_samples_are_kept(tmp_path: Path, sweep: Sweep) -> None:
    random = dataclasses.replace(sweep, grid={}, random={"learning_rate": {"loguniform": [0.01, 1]}}, samples=2)
    paths, drawn = open_sweep(random, tmp_path / "r")
    text = paths.spec.read_text(encoding="utf-8")
    # Another version of Ray might draw otherwise: what counts is what the folder says.
    paths.spec.write_text(text.replace(repr(drawn[0]["learning_rate"]), "0.25"), encoding="utf-8")
    assert open_sweep(random, tmp_path / "r")[1] == [{"learning_rate": 0.25}, drawn[1]]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seeds": (0, 2)}, r"holds another sweep: seeds was \[0, 1\] and is now \[0, 2\]; go on with the same"),
        ({"seeds": (0,)}, r"seeds was \[0, 1\] and is now \[0\]"),
        ({"grid": {"attention": ["se", "ie"]}}, r"grid was {'attention': \['se'\]} and is now"),
        ({"control": None}, "control was {'form': 'none'} and is now None"),
    ],
)
def test_another_sweep_is_refused(room: Room, changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        open_sweep(dataclasses.replace(room.sweep, **changes), room.paths.root)


def test_an_option_that_is_younger_than_the_folder_had_its_default(room: Room) -> None:
    text = room.paths.spec.read_text(encoding="utf-8")
    assert "  mixup: 0.0\n" in text
    room.paths.spec.write_text(text.replace("  mixup: 0.0\n", ""), encoding="utf-8")
    assert open_sweep(room.sweep, room.paths.root)[1] == []
    other = dataclasses.replace(room.sweep, base=room.sweep.base.with_overrides(mixup=0.2))
    with pytest.raises(ConfigError, match="mixup was 0.0 and is now 0.2"):
        open_sweep(other, room.paths.root)


def test_seeds_may_be_added_and_finished_runs_stay(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in range(4):
        finish(room, place)
    more = dataclasses.replace(room.sweep, seeds=(0, 1, 2))
    assert list(plan_sweep(more, room.paths.root).outcomes) == [trial.name for trial in room.trials]
    assert "- 2" not in room.paths.spec.read_text(encoding="utf-8")  # planning writes nothing
    asked: list[str] = []
    monkeypatch.setattr(
        "stripefold_lab.sweep.launch.launch", lambda trials, *_: asked.extend(each.name for each in trials)
    )
    run_sweep(more, room.paths.root)
    assert asked == ["backbone-seed2", "attention=se-seed2"]
    with pytest.raises(ConfigError, match=r"seeds was \[0, 1, 2\] and is now \[0, 1\]"):
        run_sweep(room.sweep, room.paths.root)


def test_added_seeds_that_cannot_be_written(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stripefold_lab.sweep.folder.write_text", full)
    with pytest.raises(TrainingError, match="cannot write .*sweep.yaml: No space left"):
        grow_sweep(dataclasses.replace(room.sweep, seeds=(0, 1, 2)), room.paths, [])


def test_another_base_is_refused_by_the_option(room: Room) -> None:
    other = dataclasses.replace(room.sweep, base=room.sweep.base.with_overrides(epochs=9))
    with pytest.raises(ConfigError, match="epochs was 1 and is now 9"):
        plan_sweep(other, room.paths.root)


def test_a_folder_of_something_else_is_refused(tmp_path: Path, sweep: Sweep) -> None:
    (tmp_path / "mine.txt").write_text("dear diary", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not empty and holds no sweep; choose another folder"):
        open_sweep(sweep, tmp_path)
    with pytest.raises(ConfigError, match="is not empty and holds no sweep"):
        open_sweep(sweep, tmp_path / "mine.txt")


def test_a_damaged_specification_is_refused(room: Room) -> None:
    room.paths.spec.write_text("]", encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"sweep.yaml cannot be read \(it is no valid YAML: .*\); choose another folder"
    ):
        open_sweep(room.sweep, room.paths.root)


def test_a_folder_that_cannot_be_written(tmp_path: Path, sweep: Sweep) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot write into .*file/sweep: Not a directory"):
        open_sweep(sweep, tmp_path / "file" / "sweep")


def test_killed_before_anything_was_whole(tmp_path: Path, sweep: Sweep) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / ".sweep.yaml.0123.part").write_text("half of", encoding="utf-8")
    paths, _ = open_sweep(sweep, folder)
    assert paths.spec.is_file()


def test_a_run_killed_before_its_configuration_was_whole(room: Room) -> None:
    config = room.trials[0].config.with_overrides(run_dir=str(room.paths.run("early")), resume=True)
    (room.paths.run("early") / "checkpoints").mkdir(parents=True)
    (room.paths.run("early") / ".config.yaml.0123.part").write_text("half of", encoding="utf-8")
    assert open_run(config).config.is_file()
    (room.paths.run("late") / "checkpoints").mkdir(parents=True)
    (room.paths.run("late") / "checkpoints" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        open_run(config.with_overrides(run_dir=str(room.paths.run("late"))))


def test_finished_is_what_has_summary_outcome_and_the_same_options(room: Room) -> None:
    trial = room.trials[0]
    assert read_outcome(room.paths, trial) is None
    finish(room, 0)
    assert read_outcome(room.paths, trial) == OUTCOME
    other = dataclasses.replace(trial, config=trial.config.with_overrides(epochs=2))
    assert read_outcome(room.paths, other) is None
    free = dataclasses.replace(trial, config=trial.config.with_overrides(workers=1, progress="lines"))
    assert read_outcome(room.paths, free) == OUTCOME
    room.paths.outcome(trial.name).write_text("{", encoding="utf-8")
    assert read_outcome(room.paths, trial) is None
    finish(room, 0)
    RunPaths(room.paths.run(trial.name)).summary.unlink()
    assert read_outcome(room.paths, trial) is None


def test_an_error_is_kept_until_the_run_succeeds(room: Room) -> None:
    name = room.trials[0].name
    assert read_error(room.paths, name) is None
    write_error(room.paths, name, "Traceback\n ...\nValueError: no\n\n")
    assert read_error(room.paths, name) == "ValueError: no"
    assert plan_sweep(room.sweep, room.paths.root).failed == {name: "ValueError: no"}
    finish(room, 0)
    assert read_error(room.paths, name) is None
    write_error(room.paths, name, "")
    assert read_error(room.paths, name) == "no reason was given"


def test_a_finished_sweep_trains_nothing_and_writes_its_files_again(room: Room) -> None:
    for place, score in enumerate((0.5, 0.6, 0.52, 0.7)):
        finish(room, place, score)
    lines: list[str] = []
    result = run_sweep(room.sweep, room.paths.root, progress=lines.append)
    assert lines == ["4 of 4 runs are finished"]
    assert [file.name for file in result.files] == [
        "results.csv", "results.parquet", "runs.csv", "runs.parquet",
        "results.md", "results.tex", "results.png", "results.pdf", "results.svg",
    ]  # fmt: skip
    assert result.rows[1].difference.mean == pytest.approx(0.14)
    assert not os.path.exists(room.paths.ray / "tune")  # Ray was not asked


def test_two_processes_do_not_work_on_one_sweep(room: Room) -> None:
    from filelock import FileLock

    with FileLock(room.paths.lock), pytest.raises(ConfigError, match="another process works on the sweep in"):
        run_sweep(room.sweep, room.paths.root)


def test_nothing_is_made_for_a_sweep_that_is_refused(tmp_path: Path, sweep: Sweep) -> None:
    wrong = dataclasses.replace(sweep, grid={"repeats": [0]})
    with pytest.raises(ConfigError, match="repeats is 0"):
        run_sweep(wrong, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


IMPOSSIBLE = {
    "not a number": ('"score": 0.5', '"score": NaN', "score of it is nan; it must be a finite number"),
    "infinite": ('"score": 0.5', '"score": Infinity', "score of it is inf"),
    "in per cent": ('"score": 0.5', '"score": 93.4', r"its score is 93\.4"),
    "below 0": ('"score": 0.5', '"score": -1', "its score is -1"),
    "text": ('"score": 0.5', '"score": "0.5"', "score of it is '0.5'"),
    "yes": ('"score": 0.5', '"score": true', "score of it is True"),
    "of another task": ('"accuracy"', '"miou"', "its measure is 'miou', not that of the task 'classification'"),
    "of no task": ('"accuracy"', '"luck"', "its measure is 'luck', which no task is judged by"),
    "no images": ('"images": 64', '"images": 0', "its images is 0"),
    "half an image": ('"images": 64', '"images": 6.5', r"images of it is 6\.5"),
    "no time": ('"seconds": 1.0', '"seconds": NaN', "seconds of it is nan"),
    "null": ('"parameters": 10', '"parameters": null', "parameters of it is None"),
    "a list": ('{"score"', '[{"score"', "it is no JSON"),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_an_outcome_that_cannot_be_is_a_failed_run_and_never_a_finding(room: Room, kind: str) -> None:
    for place, score in enumerate((0.5, 0.5, 0.5, 0.5)):
        finish(room, place, score)
    bad = room.trials[2]
    old, new, match = IMPOSSIBLE[kind]
    path = room.paths.outcome(bad.name)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert read_outcome(room.paths, bad) is None
    found = plan_sweep(room.sweep, room.paths.root)
    assert found.state(bad.name) == "failed"
    assert re.search(match, found.failed[bad.name])
    assert not any(row.stands_out for row in found.rows)
    assert sum(len(row.scores) for row in found.rows) == 3
    finish(room, 2)  # trained again
    assert not plan_sweep(room.sweep, room.paths.root).failed


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 1.5, -0.1])
def test_a_run_that_ends_with_such_a_score_has_failed(
    room: Room, monkeypatch: pytest.MonkeyPatch, score: float
) -> None:
    from types import SimpleNamespace

    trial = room.trials[0]
    deployed = SimpleNamespace(score=score, images=4)
    result = SimpleNamespace(deployed=deployed, config=trial.config, folded=torch.nn.Linear(1, 1), seconds=1.0)
    monkeypatch.setattr("stripefold_lab.training.runner.train", lambda config: result)
    assert re.search("its score is .*, which is no score", room.run(trial)["error"])
    assert not room.paths.outcome(trial.name).exists()
    assert trial.name in plan_sweep(room.sweep, room.paths.root).failed


def test_of_two_sweeps_that_start_at_once_one_is_written(tmp_path: Path, sweep: Sweep) -> None:
    """The other one has looked into the empty folder at the same moment."""
    from filelock import FileLock

    paths = SweepPaths(tmp_path / "new")
    paths.lock.parent.mkdir(parents=True)
    with FileLock(paths.lock), pytest.raises(ConfigError, match="another process works on the sweep in"):
        run_sweep(sweep, paths.root)
    assert not paths.spec.exists()
    room = open_sweep(sweep, paths.root)  # a folder with nothing but the lock is free
    assert room[0].spec.is_file()


def test_a_run_of_a_sweep_that_somebody_resumes_by_hand(room: Room) -> None:
    trial = room.trials[0]
    with claimed_run(trial.config.with_overrides(run_dir=str(room.paths.run(trial.name)), resume=True)):
        assert "another process works on the run in" in room.run(trial)["error"]
