"""The preparation does what it says: everything random, statistics calibrated, computed buffers kept."""

from __future__ import annotations

import timm
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import stripefold as sf
from stripefold.asr.sites import attached_sites
from tests.zoo import prepare
from tests.zoo.measure import error, image_dependence
from tests.zoo.subject import images, quick_creation


def test_quick_creation_keeps_computed_buffers() -> None:
    options = {"img_size": 64, "pretrained": False}
    usual = timm.create_model("swinv2_cr_tiny_224", **options).state_dict()
    with quick_creation():
        quick = timm.create_model("swinv2_cr_tiny_224", **options)
    buffers = dict(quick.named_buffers())
    assert buffers
    assert all(torch.equal(usual[name], buffer) for name, buffer in buffers.items() if name in usual)


def test_every_parameter_is_random_and_finite() -> None:
    model = timm.create_model("test_vit")
    prepare.randomise_(model, prepare.Randomness(0))
    for name, parameter in model.named_parameters():
        assert bool(parameter.isfinite().all()), name
        assert parameter.numel() == 1 or float(parameter.detach().std()) > 0, name


def test_a_shared_parameter_is_filled_once() -> None:
    first, second = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    second.weight = first.weight
    prepare.randomise_(nn.Sequential(first, second), prepare.Randomness(0))
    alone = nn.Embedding(5, 4)
    prepare.randomise_(alone, prepare.Randomness(0))
    assert torch.equal(first.weight, alone.weight)


def test_gates_are_alive() -> None:
    model = sf.attach(timm.create_model("test_resnet"), "se")
    prepare.randomise_gates_(model, prepare.Randomness(0))
    gates = [gate for site in attached_sites(model).values() for gate in site.static_gates]
    assert gates
    assert all(float(gate().detach().std()) > 0 for gate in gates)


def test_frozen_statistics_are_those_of_the_batch() -> None:
    model = nn.Sequential(FrozenBatchNorm2d(3))
    x = 5 + 2 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prepare.calibrate_frozen_(model, x)
    torch.testing.assert_close(model[0].running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(model[0].running_var, x.var((0, 2, 3)))


def test_training_leaves_the_statistics_of_the_last_batch() -> None:
    norm = nn.BatchNorm2d(3)
    first, last = (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    with prepare.statistics_of_the_last_batch(norm):
        norm(first + 9)
        norm(last)
    torch.testing.assert_close(norm.running_mean, last.mean((0, 2, 3)))
    assert norm.momentum == 0.1
    before = norm.running_mean.clone()
    prepare.jitter_(norm, prepare.Randomness(0))
    assert not torch.equal(norm.running_mean, before)
    assert bool((norm.running_var > 0).all())


def test_images_differ() -> None:
    assert image_dependence({"output": images(0, 3, 16, 16)}) > 0.5
    assert image_dependence({"output": torch.ones(2, 3)}) == 0


def test_error_sees_what_must_not_pass() -> None:
    truth = {"output": torch.tensor([1.0, -4.0, float("inf")])}
    assert error(truth, truth) == 0
    assert error({"output": torch.tensor([1.0, -3.0, float("inf")])}, truth) == 0.25
    for wrong in ([1.0, float("nan"), float("inf")], [1.0, -4.0, 0.0], [1.0, -4.0]):
        assert error({"output": torch.tensor(wrong)}, truth) == float("inf")
    assert error({}, truth) == float("inf")
    assert error({}, {}) == float("inf")
