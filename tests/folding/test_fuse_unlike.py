"""Layers that do other than their type says: hooks before them, numbers that are read elsewhere, no batch axis."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from tests.lifecycle import error, images, prepared

Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """A convolution and its norm, and a norm and its convolution, in a forward of the test's own."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.front, self.last = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)
        self.other, self.called = nn.BatchNorm2d(4), forward

    def forward(self, x: Tensor) -> Any:
        return self.called(self, x)


def net(forward: Forward) -> Net:
    torch.manual_seed(0)
    return prepared(Net(forward).double(), images()).eval()


def behind(model: Net, x: Tensor) -> Tensor:
    return model.norm(model.conv(x))


def ahead(model: Net, x: Tensor) -> Tensor:
    return model.last(model.front(x))


def doubled(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0] * 2 + 1,)


def doubled_in_place(module: nn.Module, args: tuple[Tensor]) -> None:
    args[0].mul_(2).add_(1)


def only_looks(module: nn.Module, args: tuple[Tensor]) -> None:
    assert args[0].dim() == 4


def fused(model: nn.Module, x: Tensor) -> dict[str, str]:
    """Fold without a check, compare, and say why each row was kept or merged."""
    with torch.no_grad():
        expected = model(x.clone())
        plain, report = sf.fold(model, fuse=True, example=x.clone(), check=False, report=True)
        assert error(plain(x.clone()), expected) <= 1e-10
    return {note.name: note.why for note in report.notes}


@pytest.mark.parametrize("hook", [doubled, doubled_in_place])
@pytest.mark.parametrize(("forward", "taking", "norm"), [(behind, "norm", "norm"), (ahead, "last", "front")])
def test_a_hook_that_changes_what_a_layer_is_given(hook: Any, forward: Forward, taking: str, norm: str) -> None:
    model = net(forward)
    plainly = model(images())
    model.get_submodule(taking).register_forward_pre_hook(hook)
    assert "a forward pre-hook changes what it is given" in fused(model, images())[norm]
    assert error(model(images()), plainly) > 1e-2  # the control: the hook does something


@pytest.mark.parametrize(("forward", "taking", "norm"), [(behind, "norm", "norm"), (ahead, "last", "front")])
def test_a_hook_that_only_looks_is_not_in_the_way(forward: Forward, taking: str, norm: str) -> None:
    model = net(forward)
    model.get_submodule(taking).register_forward_pre_hook(only_looks)
    assert "merged into" in fused(model, images())[norm]


def test_a_hook_before_the_layer_that_makes_the_output_is_not_in_the_way() -> None:
    model = net(behind)
    model.conv.register_forward_pre_hook(doubled)
    assert fused(model, images())["norm"] == "merged into conv"


@pytest.mark.parametrize(
    ("forward", "norm", "layer"),
    [
        (lambda m, x: behind(m, x) * m.conv.weight.square().sum(), "norm", "conv"),
        (lambda m, x: behind(m, x) * m.conv.bias.sum(), "norm", "conv"),
        (lambda m, x: behind(m, x) * m.norm.running_var.square().sum(), "norm", "norm"),
        (lambda m, x: ahead(m, x) * m.last.weight.square().sum(), "front", "last"),
        (lambda m, x: ahead(m, x) * m.front.weight.square().sum(), "front", "front"),
    ],
)
def test_numbers_that_the_model_reads_elsewhere_stay(forward: Forward, norm: str, layer: str) -> None:
    assert f"a tensor of {layer!r} is read outside its call" in fused(net(forward), images())[norm]


def test_no_batch_axis() -> None:
    """(C, L) of a convolution without a batch is (N, C) to the norm behind it, whose channels are the positions."""
    torch.manual_seed(0)
    x = torch.randn(3, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)).double()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    assert "called without a batch axis" in fused(model.eval(), x)["1"]
    other = nn.Sequential(nn.BatchNorm1d(4), nn.Conv1d(4, 3, 3)).double()
    other[0].running_mean.normal_()
    assert "called without a batch axis" in fused(other.eval(), torch.randn(4, 4, dtype=torch.float64))["0"]
    assert fused(model.eval(), x[None])["1"] == "merged into 0"  # the control


def test_an_output_inside_an_object_of_the_users_own() -> None:
    model = net(lambda m, x: SimpleNamespace(features=(y := m.conv(x)), scores=m.norm(y)))
    expected = model(images()).features
    plain, report = sf.fold(model, fuse=True, example=images(), report=True)
    why = {note.name: note.why for note in report.notes}
    assert "what is scaled is returned by the model unscaled, too" in why["norm"]
    assert error(plain(images()).features, expected) <= 1e-10


def either(model: Net, x: Tensor) -> Tensor:
    y = model.conv(x)
    return model.norm(y) if x.mean() > 0 else model.other(y)


def test_other_paths_are_announced() -> None:
    model, x = net(either), images().abs()
    with pytest.warns(UserWarning, match="'other' did not run on the example: what such a layer may meet was left"):
        plain, report = sf.fold(model, fuse=True, example=x, report=True)
    assert report.unseen == ("other",)
    assert "what is scaled may meet 'other', which did not run" in str(report)
    assert error(plain(x), model(x)) <= 1e-10
    assert error(plain(-x), model(-x)) <= 1e-10
    assert error(model(-x), model(x)) > 1e-2  # the control


def test_values_that_are_read_without_another_path_are_not_announced() -> None:
    def forward(model: Net, x: Tensor) -> Tensor:
        return model.other(F.gelu(behind(model, x))) + ahead(model, x) * float(x.mean())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fused(net(forward), images())["norm"] == "merged into conv"


class Frames(nn.Module):
    """Convolves the frames of a video (N, T, C, H, W) as images; to the norm behind, the frames are the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm3d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


@pytest.mark.parametrize("samples", [1, 2])
def test_a_norm_over_another_axis_of_equal_size(samples: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(samples, 4, 3, 2, 2, dtype=torch.float64)
    model = prepared(Frames().double(), x).eval()
    assert "are not the channels at the output of 'conv'" in fused(model, x)["norm"]


def test_a_bias_does_not_go_into_a_norm_over_another_axis() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    model = Frames()
    model.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    branched = prepared(sf.branch(model.double(), "repvgg"), x).eval()
    with pytest.warns(UserWarning, match=r"have a bias .*conv\.bias"):
        plain = sf.fold(branched, example=x, check=False)
    assert error(plain(x), branched(x)) <= 1e-10


@pytest.mark.parametrize(
    "other",
    [
        nn.RReLU().eval(),  # writes its noise, and gives something new
        lambda y: F.batch_norm(y, torch.zeros(4).double(), torch.ones(4).double(), training=True),
        lambda y: F.rrelu(y, training=False),
    ],
)
def test_a_function_that_writes_and_gives_something_new_uses_its_input(other: Any) -> None:
    def forward(model: Net, x: Tensor) -> Tensor:
        y = model.conv(x)
        return model.norm(y) + other(y)

    model = net(forward)
    assert "what is scaled is used unscaled, too" in fused(model, images())["norm"]
