"""One dataclass holds the options of a bake; they may be given by name as well."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stripefold as sf
from stripefold.errors import BakeError
from tests.baking.nets import SE, Net, before_conv
from tests.lifecycle import images


def model() -> Net:
    torch.manual_seed(0)
    return Net(before_conv, se=SE()).double().eval()


def test_a_configuration_and_options_by_name_say_the_same() -> None:
    x = images(8)
    first, told = sf.bake(model(), [x], sf.BakeConfig(constants="energy", recalibrate=False))
    second, also = sf.bake(model(), [x], constants="energy", recalibrate=False)
    assert told == also
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other, told = sf.bake(model(), [x])
    assert told.constants != "energy"
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_options_by_name_change_what_the_configuration_says() -> None:
    config = sf.BakeConfig(constants="energy", recalibrate=False)
    _, report = sf.bake(model(), [images(8)], config, constants="mean")
    assert report.constants == "mean"
    report = sf.bake_(model(), [images(8)], config)
    assert report.constants == "energy"


@pytest.mark.parametrize("call", [sf.bake, sf.bake_])
def test_what_is_no_option(call: Any) -> None:
    with pytest.raises(BakeError, match=r"bake has no option 'max_dorp': it has constants, device"):
        call(model(), [images(8)], max_dorp=0.5)
    with pytest.raises(BakeError, match="config is str: give BakeConfig"):
        call(model(), [images(8)], "mean")
    with pytest.raises(BakeError, match="max_drop='much'"):
        sf.BakeConfig(max_drop="much")  # type: ignore[arg-type]
