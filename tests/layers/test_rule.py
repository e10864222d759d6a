"""The registry: exact types, teaching it new ones, and rules that travel by name."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from timm.models.metaformer import Scale
from torch import nn

from stripefold.errors import FoldError
from stripefold.layers import rule as rule_module
from stripefold.layers import rules as _registered  # noqa: F401
from stripefold.layers.rule import add_rule, register_rule, rule_by_key, rule_for, rule_for_type, type_key
from tests.layers.layers import rule_of


class Renamed(nn.BatchNorm2d):
    pass


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_module, "_rules", dict(rule_module._rules))


def test_a_type_is_taught_by_likeness_and_its_subclasses_are_not() -> None:
    class Further(Renamed):
        pass

    register_rule(Renamed, like=nn.BatchNorm2d)
    assert rule_of(Renamed(3)).key == type_key(Renamed)
    assert rule_for(Further(3)) is None


def test_a_type_is_taught_by_a_rule_of_its_own() -> None:
    register_rule(Renamed, rule=rule_of(nn.BatchNorm2d(3)))
    assert rule_for_type(Renamed) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, {"like": nn.Linear}), "needs an nn.Module type, got 3"),
        ((Renamed, {}), "exactly one of like= and rule="),
        ((Renamed, {"like": nn.Linear, "rule": 1}), "exactly one of like= and rule="),
        ((Renamed, {"like": Renamed}), "Renamed has no rule"),
        ((Renamed, {"rule": 3}), "expected a Rule, got int"),
    ],
)
def test_wrong_registrations(arguments, message: str) -> None:
    layer_type, options = arguments
    with pytest.raises(FoldError, match=message):
        register_rule(layer_type, **options)


def test_rules_travel_by_name() -> None:
    rule = rule_of(nn.Conv2d(3, 3, 1))
    assert pickle.loads(pickle.dumps(rule)) is rule
    assert copy.deepcopy(rule) is rule


def test_a_name_that_is_not_registered_here() -> None:
    with pytest.raises(FoldError, match="no rule for a.B in this process: call register_rule"):
        rule_by_key("a.B")


def test_aliases_get_their_own_key() -> None:
    add_rule(rule_of(nn.Linear(3, 3)), "a.B")
    assert rule_by_key("a.B").key == "a.B"


def test_a_rule_that_a_layer_carries_wins_over_its_type() -> None:
    site = Renamed(3)
    site.__dict__["rule"] = rule_of(nn.BatchNorm2d(3))
    assert rule_for(site) is site.rule


def test_missing_tensors_stay_missing() -> None:
    assert rule_of(nn.Linear(3, 3)).scaled(nn.Linear(3, 3, bias=False), torch.ones(3))["bias"] is None


class OwnScale(Scale):
    """The user's copy of a layer whose axis is the instance's."""


@pytest.mark.parametrize(("use_nchw", "axis"), [(True, 1), (False, -1)])
def test_a_type_like_one_with_variants(use_nchw: bool, axis: int) -> None:
    register_rule(OwnScale, like=Scale)
    assert rule_of(OwnScale(3, use_nchw=use_nchw)).axis == axis
