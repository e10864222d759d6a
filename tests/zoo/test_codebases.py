"""The judge of the code bases, on models that need no package, and that it is no yes-man."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from tests.lifecycle import Block
from tests.zoo import codebases
from tests.zoo.codebases_check import check, paper_scales
from tests.zoo.codebases_models import Model, models


class SE(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(c, 2, 1), nn.Conv2d(2, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def net() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), SE(8), nn.Conv2d(8, 8, 1), Block(8))
    return nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def model(build: Callable[[], nn.Module] = net) -> Model:
    return Model(package="torch", name="net", build=build, shape=(3, 12, 12))


def test_right() -> None:
    line = check(model())
    assert line.faults == line.refused == []
    assert (line.sites, line.gates_folded, line.gates, line.gates_checked, line.baked, line.baked_checked) == (1,) * 6
    assert line.fused >= 2
    assert line.error < 1e-10 < 1e-3 < line.control


@pytest.mark.parametrize("name", ["fold", "bake"])
def test_a_wrong_result_is_a_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(sf, name)

    def wrong(*args: Any, **options: Any) -> Any:
        made = right(*args, **options)
        with torch.no_grad():
            next(made[0].parameters()).mul_(1.001)
        return made

    monkeypatch.setattr(sf, name, wrong)
    assert any("off by" in fault for fault in check(model()).faults)


def test_a_wrong_statistic_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sf.observe

    def wrong(*args: Any, **options: Any) -> Any:
        report = right(*args, **options)
        report.layers[0].mean.add_(1e-3)
        return report

    monkeypatch.setattr(sf, "observe", wrong)
    assert any("mean" in fault for fault in check(model()).faults)


def test_a_changed_model_and_an_exception_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(given: nn.Module, *args: Any, **options: Any) -> Any:
        given.train()
        raise KeyError("x")

    monkeypatch.setattr(sf, "verify", wrong)
    assert check(model()).faults == ["verify: KeyError: 'x'", "verify: (root) changed"]


def test_scales_by_the_formula() -> None:
    attached = sf.attach(net().double(), "se", where="norm", repeats=2)
    own, by_hand = sf.scales(attached), paper_scales(attached.state_dict())
    assert own.keys() == by_hand.keys()
    assert all(torch.allclose(own[name], by_hand[name], rtol=1e-14) for name in own)


def test_every_code_base_is_named_once() -> None:
    keys = [(each.package, each.name) for each in models()]
    assert len(set(keys)) == len(keys)
    assert len({package for package, _ in keys}) == 8


def test_the_table_is_that_of_the_lines() -> None:
    lines = [json.loads(line) for line in codebases.RESULTS.read_text(encoding="utf-8").splitlines()]
    written = Path(codebases.TABLE).read_text(encoding="utf-8")
    assert written.splitlines()[8:] == codebases.table(lines).splitlines()[8:]
