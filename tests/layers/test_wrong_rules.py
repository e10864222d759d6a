"""A rule that is wrong for its layer is noticed wherever it is used, and rules are told apart by what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import FoldError, StripefoldError
from stripefold.layers import probe as probe_module
from stripefold.layers import rule as rules
from stripefold.layers.accepts import is_affine_map
from stripefold.layers.probe import ProbedSide, probe
from stripefold.layers.rule import Along, Rule, rule_for, type_key
from stripefold.modules.float64_weights import Float64Weights
from tests.lifecycle import error

EXACT = 1e-10


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_rules", dict(rules.known_rules()))


class Squashed(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input).tanh()


class Normed(nn.Linear):
    """Divides its input by its length: no scale of the input comes through."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input / input.norm(dim=-1, keepdim=True))


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(input, weight, self.bias)


class Shifted(nn.Conv2d):
    """Uses its bias twice."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) + self.bias[:, None, None]


class Rectified(nn.Module):
    """A gain and an offset of every channel, and then an activation that its rule does not know."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight + self.bias).relu()


class Affine(Rectified):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


def channels(layer: nn.Module) -> int:
    return int(layer.weight.numel())


def example(layer: nn.Module, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, channels(layer), generator=generator, dtype=torch.float64),)


def affine_rule(layer_type: type[nn.Module], **changes: Any) -> Rule:
    options: dict[str, Any] = {
        "key": type_key(layer_type), "norm": False, "axis": -1, "channels": channels,
        "output": {"weight": Along(0), "bias": Along(0)}, "example": example,
        "input": {"weight": Along(0)}, "input_axis": -1, "input_channels": channels,
    }  # fmt: skip
    return Rule(**(options | changes))


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.double().eval()


WRONG: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "behind a squashed convolution": lambda: (nn.Sequential(Squashed(3, 8, 3), nn.BatchNorm2d(8)), noise(2, 3, 9, 9)),
    "behind a standardised one": lambda: (nn.Sequential(Standardised(3, 8, 3), nn.BatchNorm2d(8)), noise(2, 3, 9, 9)),
    "behind one with two biases": lambda: (nn.Sequential(Shifted(3, 8, 3), nn.BatchNorm2d(8)), noise(2, 3, 9, 9)),
    "in front of a normalising layer": lambda: (nn.Sequential(nn.BatchNorm1d(6), Normed(6, 4)), noise(5, 6)),
    "an affine map with an activation": lambda: (nn.Sequential(nn.Linear(5, 6), Rectified(6)), noise(2, 3, 5)),
    "the same in front": lambda: (nn.Sequential(Rectified(6), nn.Linear(6, 4)), noise(2, 3, 6)),
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("case", WRONG)
def test_fuse_probes_every_rule_that_it_uses(case: str, check: bool) -> None:
    for own, like in ((Squashed, nn.Conv2d), (Standardised, nn.Conv2d), (Shifted, nn.Conv2d), (Normed, nn.Linear)):
        sf.register_rule(own, like=like)
    sf.register_rule(Rectified, rule=affine_rule(Rectified))
    torch.manual_seed(0)
    model, x = WRONG[case]()
    randomised(model)
    plain, report = sf.fold(model, fuse=True, example=x, check=check, report=True)
    assert error(plain(x), model(x)) < EXACT
    assert not report.folded


def test_a_rule_overwritten_for_a_layer_of_torchs() -> None:
    """One that scales the wrong axis is as wrong as one for a type of the user's."""
    linear = rule_for(nn.Linear(2, 2))
    assert linear is not None
    sf.register_rule(nn.Linear, rule=rules.replace(linear, input={"weight": Along(0)}))
    torch.manual_seed(0)
    model, x = randomised(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6))), noise(5, 6)
    plain, report = sf.fold(model, fuse=True, example=x, check=False, report=True)
    assert error(plain(x), model(x)) < EXACT
    assert "wrong for Linear" in report.left[0].why


def test_the_right_rule_of_the_users_is_used() -> None:
    sf.register_rule(Affine, rule=affine_rule(Affine))
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 6), Affine(6)).double().eval(), noise(2, 3, 5)
    plain, report = sf.fold(model, fuse=True, example=x, check=False, report=True)
    assert error(plain(x), model(x)) < EXACT
    assert [note.name for note in report.folded] == ["1"]


ALIKE: dict[str, dict[str, Any]] = {
    "the very objects": {},
    "another lambda for the channels": {"input_channels": lambda layer: channels(layer)},
    "lambdas for the output": {"output": {k: lambda layer, t, v: t * v for k in ("weight", "bias")}},
    "a lambda for the input": {"input": {"weight": lambda layer, tensor, v: tensor * v}},
    "two lambdas": {"channels": lambda layer: 6, "input_channels": lambda layer: layer.weight.shape[0]},
}


@pytest.mark.parametrize("case", ALIKE)
def test_rules_that_do_the_same_are_the_same(case: str) -> None:
    sf.register_rule(Affine, rule=affine_rule(Affine, **ALIKE[case]))
    torch.manual_seed(0)
    model, x = nn.Sequential(Affine(6), nn.Linear(6, 4)).double().eval(), noise(2, 3, 6)
    assert is_affine_map(model[0])
    assert not is_affine_map(model[1])
    plain, report = sf.fold(model, fuse=True, example=x, report=True)
    assert error(plain(x), model(x)) < EXACT
    assert [note.name for note in report.folded] == ["0"]


def test_a_square_layer_is_no_affine_map_of_single_channels() -> None:
    for layer in (
        nn.Linear(6, 6),
        nn.Conv2d(6, 6, 1, groups=6),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.ConvTranspose2d(6, 6, 1),
    ):
        assert not is_affine_map(layer)


@pytest.mark.parametrize("name", ["Squashed", "Standardised"])
def test_attach_and_fold_refuse_it_as_well(name: str) -> None:
    layer_type: Any = {"Squashed": Squashed, "Standardised": Standardised}[name]
    sf.register_rule(layer_type, like=nn.Conv2d)
    with pytest.raises(StripefoldError, match="wrong for"):
        sf.attach(nn.Sequential(layer_type(3, 8, 3)), where="0")


class NormAct(nn.BatchNorm2d):
    """A BatchNorm with an activation behind."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input).relu()


def without_activation(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return nn.BatchNorm2d.forward(layer, *inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("affine", [True, False])
def test_a_batchnorm_of_the_users_merges_and_one_with_an_activation_does_not(affine: bool) -> None:
    class Own(nn.BatchNorm2d):
        """Computes what its parent does."""

    sf.register_rule(Own, like=nn.BatchNorm2d)
    sf.register_rule(NormAct, like=nn.BatchNorm2d)
    torch.manual_seed(0)
    for own, names in ((Own, ["1"]), (NormAct, [])):
        norm = own(6, affine=affine)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        model, x = nn.Sequential(nn.Conv2d(3, 6, 1), norm).double().eval(), noise(2, 3, 4, 4)
        plain, report = sf.fold(model, fuse=True, example=x, check=False, report=True)
        assert error(plain(x), model(x)) < EXACT
        assert [note.name for note in report.folded] == names


@pytest.mark.parametrize("leftover", [nn.ReLU(), nn.Identity()])
def test_what_a_merged_norm_leaves_behind_is_probed(leftover: nn.Module) -> None:
    norm = rule_for(nn.BatchNorm2d(2))
    assert norm is not None
    changes: dict[str, Any] = {"commutes": False, "linear_part": without_activation, "leftover": lambda layer: leftover}
    sf.register_rule(NormAct, rule=rules.replace(norm, **changes))
    torch.manual_seed(0)
    model, x = randomised(nn.Sequential(nn.Conv2d(3, 6, 1), NormAct(6))), noise(2, 3, 4, 4)
    plain, report = sf.fold(model, fuse=True, example=x, check=False, report=True)
    assert error(plain(x), model(x)) < EXACT
    assert bool(report.folded) == isinstance(leftover, nn.ReLU)


@pytest.mark.parametrize("side", ["output", "input", "shift", "input shift"])
def test_the_probe_tries_the_code_that_folds(side: ProbedSide, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault there is noticed on the layer, before anything is folded."""
    layer = nn.BatchNorm2d(3)
    probe_module._passed.clear()
    probe(layer, rule_of_type(layer), side)
    probe_module._passed.clear()
    kept = Float64Weights.set

    def off(self: Float64Weights, layer: nn.Module, tensors: Any, **options: Any) -> None:
        kept(self, layer, {key: exact * 1.001 for key, exact in tensors.items()}, **options)

    monkeypatch.setattr(Float64Weights, "set", off)
    with pytest.raises(FoldError, match="is wrong for BatchNorm2d"):
        probe(layer, rule_of_type(layer), side)
    assert not probe_module._passed


@pytest.mark.parametrize("side", ["output", "shift"])
def test_the_probe_tries_the_code_that_trains(side: ProbedSide, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(3, 4, 1)
    probe_module._passed.clear()
    kept = probe_module._TRAINED[side]

    def off(rule: Rule, layer: nn.Module, v: Tensor) -> dict[str, Tensor | None]:
        return {key: None if value is None else value * 1.001 for key, value in kept(rule, layer, v).items()}

    monkeypatch.setitem(probe_module._TRAINED, side, off)
    with pytest.raises(FoldError, match="is wrong for Conv2d"):
        probe(layer, rule_of_type(layer), side)


def rule_of_type(layer: nn.Module) -> Rule:
    rule = rule_for(layer)
    assert rule is not None
    return rule
