"""Adapters of PEFT: what is merged or switched off while folding is named; what is on is exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import AttachError, FoldError
from tests.lifecycle import error

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")


def adapted(*targets: str) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(2), nn.Linear(36, 5))
    model[1].running_mean.normal_()
    model[1].weight.data.normal_()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=list(targets), r=2)).double().eval()
    for name, parameter in wrapped.named_parameters():
        if "lora" in name:
            parameter.data.normal_()
    return wrapped, torch.randn(2, 3, 6, 6, dtype=torch.float64)


def merge(model: Any) -> None:
    model.merge_adapter()


def switch_off(model: Any) -> None:
    model.base_model.disable_adapter_layers()


STATES = {"merged": (merge, "is merged into it"), "off": (switch_off, "are switched off")}


@pytest.mark.parametrize("state", STATES)
def test_nothing_is_fused_into_what_an_adapter_will_change(state: str) -> None:
    model, x = adapted("0")
    change, why = STATES[state]
    change(model)
    plain, report = sf.fold(model, fuse=True, example=x, report=True)
    assert why in report.left[0].why or "did not run on the example" in report.left[0].why
    plain.unmerge_adapter() if state == "merged" else plain.base_model.enable_adapter_layers()
    model.unmerge_adapter() if state == "merged" else model.base_model.enable_adapter_layers()
    assert error(plain(x), model(x)) < 1e-10
    switch_off(model)
    assert error(plain(x), model(x)) > 1e-3  # the control: the adapter does something


@pytest.mark.parametrize("state", STATES)
def test_no_gate_is_put_on_it(state: str) -> None:
    model, x = adapted("4")
    change, why = STATES[state]
    change(model)
    with pytest.raises(AttachError, match=why):
        sf.attach(model, where="*.4.base_layer", example=x)


def test_an_adapter_that_is_switched_off_after_attaching() -> None:
    model, x = adapted("4")
    model = sf.attach(model, where="*.4.base_layer", psi=0.7, example=x)
    plain = sf.fold(model, example=x)
    assert error(plain(x), model(x)) < 1e-10
    switch_off(model)
    with pytest.raises(FoldError, match=r"cannot fold what is on '.*4\.base_layer': .*are switched off"):
        sf.fold(model, example=x)


def test_what_is_merged_for_good_is_a_plain_layer() -> None:
    model, x = adapted("0")
    plain = model.merge_and_unload()
    fused, report = sf.fold(plain, fuse=True, example=x, report=True)
    assert [note.name for note in report.folded] == ["1"]
    assert error(fused(x), plain(x)) < 1e-10
