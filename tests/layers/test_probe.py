"""The probe: passes what is exact, refuses what is not, touches nothing, costs little."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from stripefold.errors import FoldError
from stripefold.layers import probe as probe_module
from stripefold.layers import rule as rule_module
from stripefold.layers.probe import probe
from stripefold.layers.rule import Rule, register_rule, rule_for
from stripefold.layers.rules_torch import along
from tests.layers.layers import rule_of


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_passed", {})
    monkeypatch.setattr(rule_module, "_rules", dict(rule_module._rules))


class Rectified(nn.BatchNorm2d):
    """Looks like a BatchNorm and is none: a negative scale does not pass through the ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Offset(nn.Linear):
    """A constant the rule does not know of."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-6


class Broken(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("needs a second input")


class Silent(nn.Linear):
    """Always 0: nothing can be measured on it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0


@pytest.mark.parametrize(
    ("layer", "like", "message"),
    [
        (Rectified(4), nn.BatchNorm2d, r"Rectified is wrong .*relative error .*Register a rule that fits"),
        (Offset(4, 4), nn.Linear, r"Offset is wrong"),
        (Offset(512, 512), nn.Linear, r"Offset is wrong"),
        (Broken(4, 4), nn.Linear, r"cannot be probed on Broken.*needs a second input.*Register a rule"),
        (Silent(4, 4), nn.Linear, r"Silent is wrong"),
        (nn.Conv2d(4, 4, 3), nn.Linear, r"wrong|cannot be probed"),
    ],
)
def test_a_wrong_registration_is_refused(layer: nn.Module, like: type[nn.Module], message: str) -> None:
    register_rule(type(layer), like=like)
    rule = rule_for(layer)
    assert rule is not None
    with pytest.raises(FoldError, match=message):
        probe(layer, rule)


def test_a_right_registration_passes() -> None:
    class Renamed(nn.BatchNorm2d):
        pass

    register_rule(Renamed, like=nn.BatchNorm2d)
    probe(Renamed(4), rule_of(Renamed(4)))
    probe(Renamed(4), rule_of(Renamed(4)), "input")


def test_a_rule_that_forgets_a_tensor_is_refused() -> None:
    forgetful = replace(rule_of(nn.Linear(4, 4)), output={"weight": along(0)})
    with pytest.raises(FoldError, match="relative error"):
        probe(nn.Linear(4, 4), forgetful)
    probe(nn.Linear(4, 4, bias=False), forgetful)


def test_a_wrong_input_side_is_refused() -> None:
    rule: Rule = replace(rule_of(nn.Linear(4, 4)), input={"weight": along(0)})
    with pytest.raises(FoldError, match="scaling its tensors is not scaling its input"):
        probe(nn.Linear(4, 4), rule, "input")


@pytest.mark.parametrize("factory", [lambda: nn.Linear(4096, 1024), lambda: nn.Conv2d(512, 512, 3, groups=4)])
def test_large_layers_are_probed_through_a_small_twin(factory) -> None:
    with torch.device("meta"):
        layer = factory()
    started = time.perf_counter()
    for _ in range(5):
        probe_module._passed.clear()
        probe(layer, rule_of(layer))
        probe(layer, rule_of(layer), "input")
    assert time.perf_counter() - started < 1
    assert layer.weight.is_meta


def test_a_layer_that_cannot_shrink_is_probed_in_full() -> None:
    class Fixed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(-1, 300))

    register_rule(Fixed, like=nn.Linear)
    layer = Fixed(300, 300)
    rule = replace(rule_of(layer), example=lambda layer, generator: (torch.randn(2, 300, dtype=torch.float64),))
    probe(layer, rule)


def test_nothing_is_touched() -> None:
    layer = nn.BatchNorm2d(4).train()
    layer.register_forward_hook(lambda *_: pytest.fail("the probe ran the layer itself"))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state = torch.get_rng_state()
    probe(layer, rule_of(layer))
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.training
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


def test_like_layers_are_probed_once_and_others_again(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[nn.Module] = []
    measure = probe_module._measure
    monkeypatch.setattr(probe_module, "_measure", lambda layer, *rest: measured.append(layer) or measure(layer, *rest))
    probe(nn.Conv2d(4, 4, 3), rule_of(nn.Conv2d(4, 4, 3)))
    probe(nn.Conv2d(4, 4, 3), rule_of(nn.Conv2d(4, 4, 3)))
    assert len(measured) == 1
    probe(nn.Conv2d(4, 4, 3, padding=1), rule_of(nn.Conv2d(4, 4, 3)))
    probe(nn.Conv2d(4, 4, 3), rule_of(nn.Conv2d(4, 4, 3)), "input")
    assert len(measured) == 3


def test_works_under_a_default_device_and_autocast() -> None:
    with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
        probe(nn.Linear(4, 4), rule_of(nn.Linear(4, 4)))
        probe(nn.BatchNorm2d(4), rule_of(nn.BatchNorm2d(4)))
