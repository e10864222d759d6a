"""Baking is algebra once the constants are fixed: real architectures, float64, constants of both signs."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
import timm
import torch
import torchvision
from torch import nn

import stripefold as sf
from stripefold.baking.apply import apply_
from stripefold.baking.sites import plan_bake
from tests.baking.exact import Outcome, assert_exact, bake_exactly, prepared

# Architecture -> what becomes of its gates. All of them fold.
TIMM = {
    "mobilenetv3_large_100": {"forward": 8},
    "efficientnet_b0": {"forward": 16},
    "regnety_002": {"forward": 13},
    "seresnet50": {"backward": 16},
    "ghostnet_100": {"backward": 2, "forward": 5},
    "ecaresnet50d": {"backward": 16},
}
TORCHVISION = {
    "efficientnet_b0": {"forward": 16},
    "mobilenet_v3_large": {"forward": 8},
    "regnet_y_400mf": {"forward": 16},
}
# Others, each for what is particular about it.
PARTICULAR = {
    "mixnet_s": {"forward": 13},  # a split into layers of several kernel sizes behind the gate
    "ese_vovnet19b_dw": {"backward": 3, "forward": 1},  # the gate reads what a concatenation is made of
    "rexnet_100": {"backward": 13},  # between a norm and ReLU6
    "nf_seresnet26": {"backward": 8},  # gains of standardised convolutions, a factor behind the gate
    "shvit_s1": {"forward": 2},
    "resnest50d_1s4x24d": {"multiply": 16},  # the product in the block's own forward
    "skresnet18": {"keep": 8},  # weighs branches
    "convnextv2_atto": {"keep": 12},  # no module returns the gate
}


def assert_plain(outcome: Outcome, model: nn.Module) -> None:
    """The attention's own classes and parameters are gone, nothing of ours is there, and the rest is as it was."""
    assert type(outcome.baked) is type(model)
    assert not any(type(m).__module__.startswith("stripefold") for m in outcome.baked.modules())
    for site in outcome.sites:
        assert type(outcome.baked.get_submodule(site.place.path)) is nn.Identity
    before, after = model.state_dict(), outcome.baked.state_dict()
    gone = set(before) - set(after)
    assert not set(after) - set(before)
    assert all(key.startswith(tuple(f"{site.place.path}." for site in outcome.sites)) for key in gone)
    assert all(before[key].shape == after[key].shape and before[key].dtype == after[key].dtype for key in after)
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(before.values(), after.values(), strict=False))


def assert_as_expected(name: str, library: str, expected: dict[str, int]) -> tuple[Outcome, nn.Module, torch.Tensor]:
    build = (lambda: timm.create_model(name)) if library == "timm" else (lambda: torchvision.models.get_model(name))
    model, x = prepared(build, 32 if "resnet" in name else 64)
    outcome = bake_exactly(model, x)
    assert Counter(outcome.how()) == expected, [site.why for site in outcome.sites]
    assert_exact(outcome)
    return outcome, model, x


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    outcome, model, x = assert_as_expected(name, "timm", TIMM[name])
    assert_plain(outcome, model)
    with torch.no_grad():
        again = pickle.loads(pickle.dumps(outcome.baked))(x)
        assert torch.equal(again, copy.deepcopy(outcome.baked)(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    outcome, model, _ = assert_as_expected(name, "torchvision", TORCHVISION[name])
    assert_plain(outcome, model)


@pytest.mark.slow
def test_what_is_baked_fuses() -> None:
    outcome, _, x = assert_as_expected("mobilenetv3_large_100", "timm", TIMM["mobilenetv3_large_100"])
    fused = sf.fold(outcome.baked, fuse=True, example=x)
    sf.verify(outcome.baked, fused, x)
    left = [m for m in fused.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTICULAR)
def test_particular(name: str) -> None:
    model, x = prepared(lambda: timm.create_model(name))
    outcome = bake_exactly(model, x)
    assert Counter(outcome.how()) == PARTICULAR[name], [site.why for site in outcome.sites]
    assert all(site.why for site in outcome.sites)
    if set(outcome.how()) != {"keep"}:
        assert_exact(outcome)


@pytest.mark.slow
def test_branches_that_are_fused_first_let_the_constants_through() -> None:
    """A sum of branches cannot take a scale in one layer; the convolution that they fuse to can."""
    model, x = prepared(lambda: timm.create_model("repvit_m1"))
    assert set(bake_exactly(model, x).how()) == {"multiply"}
    outcome = bake_exactly(sf.fold(model, fuse=True, example=x, check=False), x)
    assert set(outcome.how()) == {"backward"}
    assert_exact(outcome)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_products_are_formed_in_float64_and_rounded_once(dtype: torch.dtype) -> None:
    model, x = prepared(lambda: timm.create_model("mobilenetv3_small_050"))
    low = copy.deepcopy(model).to(dtype)
    exact = bake_exactly(copy.deepcopy(low).double(), x)
    sites = plan_bake(low, exact.discovery)
    baked, _ = apply_(low, sites, exact.constants)
    for key, tensor in exact.baked.state_dict().items():
        assert torch.equal(baked.state_dict()[key], tensor.to(baked.state_dict()[key].dtype)), key
