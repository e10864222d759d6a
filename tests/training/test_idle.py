"""What does nothing in a run makes no other run of it."""

from __future__ import annotations

import pytest
import torch

from stripefold.asr.groups import param_groups
from stripefold_lab.training import TrainConfig
from stripefold_lab.training.build import build_model
from stripefold_lab.training.data import ImageSpec
from stripefold_lab.training.schedule import rate_factor
from stripefold_lab.training.training_module import TrainingModule
from stripefold_lab.training.unused_options import UNUSED, canonical, unused_options

SPEC = ImageSpec(classes=("a", "b"), channels=1, size=8)


@pytest.mark.parametrize("form", sorted(UNUSED))
def test_idle_options_do_nothing(form: str) -> None:
    odd = {
        "attention": "eca", "where": "norm", "repeats": 3, "psi": 0.7, "freeze": ("psi",),
        "attention_options": {"kernel_size": 5}, "gate_weight_decay": 0.3, "init": "identity",
        "start": "reference",
    }  # fmt: skip
    changed = {name: odd[name] for name in (*UNUSED[form], "init")}
    config = TrainConfig(model="resnet8", form=form, **changed)
    assert canonical(config) == TrainConfig(model="resnet8", form=form)
    plain, other = (build_model(each, SPEC).state_dict() for each in (canonical(config), config))
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_what_is_not_idle_stays() -> None:
    config = TrainConfig(form="both", repeats=2, psi=0.3, branch="acnet", init="identity")
    assert canonical(config) == config
    assert canonical(config.with_overrides(form="none")).init == "identity"  # of the blocks


def test_the_weight_decay_of_gates_is_idle_where_there_are_none() -> None:
    for form in ("none", "dynamic", "static"):
        config = TrainConfig(model="resnet8", form=form, gate_weight_decay=0.3)
        groups = param_groups(build_model(config, SPEC), weight_decay=0.1, gate_weight_decay=0.3)
        assert ({group["weight_decay"] for group in groups} == {0.1}) == (form == "none")
        assert (canonical(config).gate_weight_decay is None) == (form == "none")


def test_the_optimisers_and_the_schedules_own_options_are_idle_under_the_others() -> None:
    adamw = TrainConfig(optimizer="adamw", momentum=0.5)
    assert canonical(adamw) == TrainConfig(optimizer="adamw")
    assert canonical(TrainConfig(momentum=0.5, nesterov=True)).momentum == 0.5
    for schedule in ("cosine", "constant"):
        changed = TrainConfig(schedule=schedule, milestones=(2, 3), decay=0.5)
        assert canonical(changed) == TrainConfig(schedule=schedule)
        rates = [[rate_factor(each, 2, step) for step in range(24)] for each in (changed, canonical(changed))]
        assert rates[0] == rates[1]
    stepped = TrainConfig(schedule="step", milestones=(2, 3), decay=0.5)
    assert canonical(stepped) == stepped
    assert rate_factor(stepped, 2, 23) == 0.25
    assert not {"momentum", "milestones"} & set(unused_options(stepped))


def test_adamw_asks_for_no_momentum() -> None:
    config = TrainConfig(model="resnet8", optimizer="adamw", momentum=0.5)
    found = [
        TrainingModule(build_model(each, SPEC), each, classes=2, steps_per_epoch=1)
        .configure_optimizers()["optimizer"]
        .param_groups
        for each in (config, canonical(config))
    ]
    assert [{k: v for k, v in group.items() if k != "params"} for group in found[0]] == [
        {k: v for k, v in group.items() if k != "params"} for group in found[1]
    ]
