"""Which runs a sweep has: controls, equal settings, names."""

from __future__ import annotations

from typing import Any

import pytest

from stripefold.errors import ConfigError
from stripefold_lab.sweep import Sweep
from stripefold_lab.sweep.trials import list_settings, list_trials, shown
from stripefold_lab.training import TrainConfig


def labels(drawn: list[dict[str, Any]] | None = None, **options: Any) -> list[tuple[str, str | None]]:
    settings = list_settings(Sweep(base=TrainConfig(model="resnet8"), **options), drawn or [])
    return [(setting.label, setting.control) for setting in settings]


def test_every_setting_is_compared_with_the_backbone_that_is_otherwise_equal() -> None:
    assert labels(grid={"model": ["resnet8", "resnet20"], "attention": ["se", "eca"]}) == [
        ("backbone, model=resnet8", None),
        ("model=resnet8, attention=se", "backbone, model=resnet8"),
        ("model=resnet8, attention=eca", "backbone, model=resnet8"),
        ("backbone, model=resnet20", None),
        ("model=resnet20, attention=se", "backbone, model=resnet20"),
        ("model=resnet20, attention=eca", "backbone, model=resnet20"),
    ]


def test_equal_runs_are_one_run() -> None:
    # Of the backbone there is one, whatever its idle options; of a dynamic attention one for both numbers of gates.
    grid = {"form": ["none", "static", "dynamic"], "repeats": [1, 2]}
    assert [label for label, _ in labels(grid=grid)] == [
        "backbone", "form=static, repeats=1", "form=static, repeats=2", "form=dynamic, repeats=1",
    ]  # fmt: skip


def test_options_of_another_optimiser_or_schedule_make_no_other_run() -> None:
    grid = {
        "optimizer": ["sgd", "adamw"],
        "momentum": [0.5, 0.9],
        "schedule": ["constant", "step"],
        "decay": [0.1, 0.5],
    }
    base = TrainConfig(model="resnet8", milestones=(2,))
    settings = list_settings(Sweep(base=base, grid=grid, control=None), [])
    # Two of sgd's momentum and one of adamw, each with a constant rate once and with both factors of the steps.
    assert len(settings) == (2 + 1) * (1 + 2)
    assert sum(each.config.optimizer == "adamw" for each in settings) == 3


def test_drawn_values_have_controls_of_their_own() -> None:
    drawn = [{"learning_rate": 0.123456}, {"learning_rate": 0.2}]
    options = {"random": {"learning_rate": {"uniform": [0, 1]}}, "samples": 2}
    assert labels(drawn, **options) == [
        ("backbone, learning_rate=0.1235", None),
        ("learning_rate=0.1235", "backbone, learning_rate=0.1235"),
        ("backbone, learning_rate=0.2", None),
        ("learning_rate=0.2", "backbone, learning_rate=0.2"),
    ]


def test_values_that_look_alike_stay_apart() -> None:
    drawn = [{"learning_rate": 0.100001}, {"learning_rate": 0.100002}]
    sweep = Sweep(base=TrainConfig(), random={"learning_rate": {"uniform": [0, 1]}}, samples=2, seeds=(0,))
    settings = list_settings(sweep, drawn)
    assert [setting.label for setting in settings] == [
        "backbone, learning_rate=0.1", "learning_rate=0.1", "backbone, learning_rate=0.1 (2)", "learning_rate=0.1 (2)",
    ]  # fmt: skip
    assert settings[3].control == settings[2].label
    assert len({trial.name for trial in list_trials(sweep, settings)}) == 4


def test_another_control_and_none() -> None:
    assert labels(grid={"repeats": [1, 2]}, control={"repeats": 1}) == [("control", None), ("repeats=2", "control")]
    assert labels(grid={"repeats": [1, 2]}, control=None) == [("repeats=1", None), ("repeats=2", None)]


def test_seeds_come_in_rounds() -> None:
    sweep = Sweep(base=TrainConfig(), grid={"repeats": [1, 2]}, seeds=(0, 5))
    trials = list_trials(sweep, list_settings(sweep, []))
    assert [trial.name for trial in trials] == [
        "backbone-seed0", "repeats=1-seed0", "repeats=2-seed0", "backbone-seed5", "repeats=1-seed5", "repeats=2-seed5",
    ]  # fmt: skip
    assert [trial.config.seed for trial in trials] == [0, 0, 0, 5, 5, 5]


@pytest.mark.parametrize(
    "values",
    [["layer1.*", "layer1.?"], ["x" * 200, "x" * 201], ["LAYER", "layer"], ["../../etc", "/etc"], ["größe", "gr-ße"]],
)
def test_every_name_is_one_folder(values: list[str]) -> None:
    sweep = Sweep(base=TrainConfig(), grid={"where": values}, seeds=(0,))
    names = [trial.name for trial in list_trials(sweep, list_settings(sweep, []))]
    assert len({name.lower() for name in names}) == 3
    assert all(len(name) < 100 and "/" not in name and not name.startswith(".") and name.isascii() for name in names)


def test_a_refused_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="the setting 'repeats=0': repeats is 0; it must be at least 1"):
        labels(grid={"repeats": [1, 0]}, control=None)
    with pytest.raises(ConfigError, match="the control of the setting 'repeats=2': form is 'odd'"):
        labels(grid={"repeats": [2]}, control={"form": "odd"})


def test_the_weight_decay_of_gates_makes_one_backbone() -> None:
    assert [label for label, _ in labels(grid={"gate_weight_decay": [0.0, 0.1]})] == [
        "backbone", "gate_weight_decay=0", "gate_weight_decay=0.1",
    ]  # fmt: skip


def test_shown() -> None:
    assert [shown(value) for value in (None, True, 3, 1e-5, ["a", "b"])] == ["default", "true", "3", "1e-05", "a+b"]
