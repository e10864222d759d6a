"""The registry: exact types, teaching it new ones, and rules that travel by name."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.metaformer import Scale
from torch import Tensor, nn
from torch.nn import functional as F

import stripefold as sf
from stripefold.errors import AttachError, FoldError
from stripefold.layers import rule as rule_module
from stripefold.layers.rule import (
    Rule,
    add_rule,
    known_rules,
    register_rule,
    rule_by_key,
    rule_for,
    rule_for_type,
    type_key,
)
from tests.layers.layers import rule_of
from tests.lifecycle import error


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


FIELDS = [field.name for field in dataclasses.fields(Rule) if field.name != "key"]


class Full(nn.Linear):
    """A layer whose rule says something in every field."""


class LikeFull(Full):
    """Another one."""


def full_rule() -> Rule:
    plain = rule_of(nn.Linear(2, 2))
    given: dict[str, Any] = {
        field.name: (lambda *_, name=field.name: name)
        for field in dataclasses.fields(Rule)
        if "Callable" in str(field.type)
    }
    maps = {
        "output": dict(plain.output),
        "input": dict(plain.input or {}),
        "input_shift": dict(plain.input_shift or {}),
    }
    numbers = {
        "norm": True,
        "axis": 1,
        "input_axis": 1,
        "commutes": False,
        "required": "bias",
        "tolerance": 1e-3,
        "called": False,
        "inputs": 3,
    }
    return Rule(key=type_key(Full), input_eval_only=True, **(given | maps | numbers))


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("how", ["like", "rule"])
def test_whatever_a_rule_says_is_inherited(field: str, how: str) -> None:
    rule = full_rule()
    default = {each.name: each.default for each in dataclasses.fields(Rule)}[field]
    assert getattr(rule, field) is not default  # the control: a field that is forgotten is another one
    add_rule(rule)
    register_rule(LikeFull, **({"like": Full} if how == "like" else {"rule": rule}))
    found = rule_for_type(LikeFull)
    assert found is not None
    assert getattr(found, field) is getattr(rule, field)
    assert found.key == type_key(LikeFull)


@pytest.mark.parametrize("field", FIELDS)
def test_every_rule_of_stripefold_is_inherited_in_full(field: str) -> None:
    for rule in list(known_rules().values()):
        if ":" not in rule.key:
            copied = dataclasses.replace(rule, key=type_key(Full))
            add_rule(copied)
            register_rule(LikeFull, like=Full)
            assert getattr(known_rules()[type_key(LikeFull)], field) is getattr(rule, field), rule.key


class OwnConv(nn.Conv2d):
    """The user's copy."""


class OwnLinear(nn.Linear):
    """The user's copy."""


class OwnNorm(nn.BatchNorm2d):
    """The user's copy."""


class OwnConv1d(nn.Conv1d):
    """The user's copy."""


# In front of the user's layer something that is added to its input; the layer takes it.
TAKEN: dict[str, tuple[type[nn.Module], type[nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (OwnConv, nn.Conv2d, lambda: nn.Sequential(nn.BatchNorm2d(4), OwnConv(4, 5, 3)), (2, 4, 7, 8)),
    "over a sequence": (OwnConv1d, nn.Conv1d, lambda: nn.Sequential(nn.BatchNorm1d(4), OwnConv1d(4, 5, 3)), (2, 4, 9)),
    "linear": (OwnLinear, nn.Linear, lambda: nn.Sequential(nn.BatchNorm1d(4), OwnLinear(4, 5)), (6, 4)),
    "norm": (OwnNorm, nn.BatchNorm2d, lambda: nn.Sequential(nn.Conv2d(4, 5, 1), OwnNorm(5)), (2, 4, 7, 8)),
}


@pytest.mark.parametrize("case", TAKEN)
def test_a_layer_like_another_takes_what_that_takes(case: str) -> None:
    own, like, build, shape = TAKEN[case]
    torch.manual_seed(0)
    x, model = torch.randn(shape, dtype=torch.float64), build().double()
    model.train()(3 * x + 1)
    _, untaught = sf.fold(model.eval(), fuse=True, example=x, check=False, report=True)
    assert not untaught.folded  # the control: without the rule it stays
    register_rule(own, like=like)
    plain, report = sf.fold(model, fuse=True, example=x, report=True)
    assert [note.folded for note in report.notes] == [True]
    assert error(plain(x), model(x)) < 1e-10


class Padded(nn.Conv2d):
    """Pads its input itself."""

    def __init__(self, multiple: int, value: float = 0.0) -> None:
        super().__init__(4, 5, 3)
        self.multiple, self.value = multiple, value

    def forward(self, x: Tensor) -> Tensor:
        right, bottom = -x.shape[-1] % self.multiple, -x.shape[-2] % self.multiple
        return super().forward(F.pad(x, (0, right, 0, bottom), value=self.value))


class PaddedRows(nn.Linear):
    """Pads a sequence to whole blocks."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 0, 0, -x.shape[-2] % 3)))


@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 5, 32])
def test_a_layer_that_pads_some_sizes_takes_no_shift(multiple: int) -> None:
    """Whatever the size of the smallest example; and one that pads none does."""
    register_rule(Padded, like=nn.Conv2d)
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(4), Padded(multiple)).double()
    x = torch.randn(2, 4, 32, 32, dtype=torch.float64)
    model.train()(3 * x + 1)
    plain, report = sf.fold(model.eval(), fuse=True, example=x, check=False, report=True)
    assert [note.folded for note in report.notes] == [multiple == 1]
    assert multiple == 1 or "what takes a shift of its input does not add to its input" in report.notes[0].why
    other = x[..., :-1, :-1]
    assert error(plain(other), model(other)) < 1e-10


def test_a_layer_that_pads_rows_takes_no_shift() -> None:
    register_rule(PaddedRows, like=nn.Linear)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.BatchNorm1d(3), PaddedRows(8, 5)).double(), torch.randn(2, 3, 8, dtype=torch.float64)
    _, report = sf.fold(model.eval(), fuse=True, example=x, check=False, report=True)
    assert not report.folded


def test_a_layer_that_pads_some_sizes_with_ones_takes_no_scale_of_its_output() -> None:
    """A bias takes part in what is padded: a scale is exact all the same, an activation for some sizes is not."""

    class Rectified(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y.relu() if x.shape[-1] % 3 == 0 else y

    register_rule(Padded, like=nn.Conv2d)
    register_rule(Rectified, like=nn.Conv2d)
    sf.attach(nn.Sequential(Padded(4, value=1.0)), "se", where="0")
    with pytest.raises(AttachError, match="scaling its tensors is not scaling its output"):
        sf.attach(nn.Sequential(Rectified(4, 5, 3)), "se", where="0")


class OneSize(nn.Conv2d):
    """Runs on maps of one size."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (4, 4):
            raise ValueError("made for 4x4")
        return super().forward(x)


class Holes(nn.Conv2d):
    """Gives no numbers once its weight is a new one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.where(self.weight.sum() > self.limit, torch.nan, 0.0)


def test_a_layer_for_one_size_is_probed_on_that() -> None:
    register_rule(OneSize, like=nn.Conv2d)
    sf.attach(nn.Sequential(OneSize(4, 5, 3)), "se", where="0")


def test_no_number_is_no_agreement() -> None:
    register_rule(Holes, like=nn.Conv2d)
    for limit in (-1e9, 0.0):
        layer = Holes(4, 5, 3)
        layer.limit = limit
        with pytest.raises(AttachError, match=r"relative error inf"):
            sf.attach(nn.Sequential(layer), "se", where="0")
