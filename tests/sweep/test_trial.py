"""One run of a sweep, as Ray calls it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from stripefold.errors import ConfigError
from stripefold_lab.sweep import trial as trial_module
from stripefold_lab.sweep.folder import read_error, read_outcome
from stripefold_lab.sweep.trial import check_shared, run_trial
from stripefold_lab.training import evaluate, load_config, train
from tests.sweep.conftest import Room


def test_a_run_of_a_sweep_is_an_ordinary_run(room: Room, tmp_path: Path) -> None:
    trial = room.trials[1]
    assert trial.name == "attention=se-seed0"
    found = room.run(trial)
    folder = room.paths.run(trial.name)
    outcome = read_outcome(room.paths, trial)
    assert found == {"score": outcome.score, "error": ""}
    assert (outcome.measure, outcome.images, outcome.parameters) == ("accuracy", 64, 77754)
    assert evaluate(folder / "folded.safetensors").score == outcome.score
    assert "epoch 1/1" in room.paths.log(trial.name).read_text(encoding="utf-8")
    # The very bits of the same configuration trained alone.
    alone = train(trial.config.with_overrides(run_dir=str(tmp_path / "alone"), progress="none"))
    same = {name: value for name, value in load_config(folder).to_dict().items() if name not in ("run_dir", "progress")}
    assert same == {name: value for name, value in alone.config.to_dict().items() if name in same}
    assert _weights(alone.folded_file) == _weights(folder / "folded.safetensors")


def _weights(file: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


def test_a_run_goes_on_from_its_own_last_checkpoint(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = room.trials[0]

    def die(*_: object, **__: object) -> None:
        raise MemoryError("the process was killed")

    with monkeypatch.context() as patch:
        patch.setattr("stripefold_lab.training.runner.finish", die)
        assert "MemoryError" in room.run(trial)["error"]
    assert read_error(room.paths, trial.name) == "MemoryError: the process was killed"
    assert room.run(trial)["error"] == ""
    assert read_error(room.paths, trial.name) is None
    assert "0 of them in the process that wrote this" in (room.paths.run(trial.name) / "summary.md").read_text()
    assert room.paths.log(trial.name).read_text(encoding="utf-8").count("epoch 1/1") == 1


def test_a_failure_is_a_result(room: Room) -> None:
    trial = room.trials[0]
    configs = {trial.name: {**trial.config.to_dict(), "data": "folder:no/such/place"}}
    found = run_trial({"trial": trial.name}, room.job(configs=configs))
    assert math.isnan(found["score"])
    assert found["error"].startswith("DataError: ")
    assert "Traceback" in room.paths.error(trial.name).read_text(encoding="utf-8")
    assert read_outcome(room.paths, trial) is None


def test_relative_paths_are_those_of_the_process_that_started_the_sweep(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    job = room.job(directory=str(tmp_path / "elsewhere"), configs={room.trials[0].name: {"data": "folder:images"}})
    run_trial({"trial": room.trials[0].name}, job)
    assert Path.cwd() == tmp_path / "elsewhere"


def test_a_machine_that_does_not_see_the_folder_is_named(room: Room, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="machine .* does not see the sweep's folder .*/other: put it on a file system"
    ):
        check_shared(room.job(root=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match="does not see the sweep's folder"):
        run_trial({"trial": room.trials[0].name}, room.job(spec="another sweep in a folder of the same name"))
    assert not room.paths.error(room.trials[0].name).exists()


def test_a_machine_with_other_versions_is_named(room: Room) -> None:
    with pytest.raises(ConfigError, match="has torch .*, the sweep was started with 1.0: install the same everywhere"):
        check_shared(room.job(versions={**room.job().versions, "torch": "1.0"}))


def test_two_processes_do_not_train_in_one_folder(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr(trial_module, "WAIT_SECONDS", 0.1)
    with FileLock(room.paths.run_lock(room.trials[0].name)):
        error = room.run(room.trials[0])["error"]
    assert "another process still trains in this run's folder" in error
