"""A bias that folding creates leaves its layer only where that is one plain call that nobody else looks into."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from tests.lifecycle import EXACT, error, images, prepared, scatter_

Use = Callable[[nn.Conv2d, Tensor], Tensor]


def plain_call(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return conv(x)


def bias_read_beside_the_call(conv: nn.Conv2d, x: Tensor) -> Tensor:
    y = conv(x)
    return y if conv.bias is None else y + conv.bias.view(-1, 1, 1).square()


def weight_without_the_bias(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, padding=1)


def twice_the_bias(conv: nn.Conv2d, x: Tensor) -> Tensor:
    bias = None if conv.bias is None else 2 * conv.bias
    return F.conv2d(x, conv.weight, bias, padding=1)


ELSEWHERE = [bias_read_beside_the_call, weight_without_the_bias, twice_the_bias]


class Net(nn.Module):
    """A convolution without bias, used in some way, and the BatchNorm behind it."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.use(self.conv, x))


def with_new_bias(use: Use, by: str, net: Callable[[Use], nn.Module] = Net) -> nn.Module:
    torch.manual_seed(0)
    model = net(use).double()
    model = sf.branch(model, "repvgg") if by == "block" else sf.attach(model, "shift", where="conv")
    return scatter_(prepared(model, images(8))).eval()


@pytest.mark.parametrize("by", ["gate", "block"])
@pytest.mark.parametrize("use", ELSEWHERE)
def test_it_stays_where_the_code_looks_into_the_layer(use: Use, by: str) -> None:
    model, x = with_new_bias(use, by), images()
    with pytest.warns(UserWarning, match=r"have a bias .*: conv\.bias"):
        plain, report = sf.fold(model, example=x, check=False, report=True)
    assert report.new_keys == ("conv.bias",)
    assert error(plain(x), model(x)) < EXACT
    with torch.no_grad():  # the control: into the norm, as after a plain call, it would be wrong
        plain.bn.running_mean -= plain.conv.bias
        plain.conv.bias = None
    assert error(plain(x), model(x)) > 1e-3


def scaled_by(tensor: Tensor | None, x: Tensor) -> Tensor:
    return x if tensor is None else x * tensor.mean()


def read_of(layers: list[nn.Module], name: str) -> Tensor | None:
    return getattr(layers[0], name.lower())  # a name that no look at the code finds


class Hidden(Net):
    """Reads the bias where a number of the input is large, and calls no layer there."""

    def forward(self, x: Tensor) -> Tensor:
        return scaled_by(read_of([self.conv], "BIAS"), x) if x.mean() > 10 else super().forward(x)


class Named(Net):
    """The same in words that the code says."""

    def forward(self, x: Tensor) -> Tensor:
        return scaled_by(self.conv.bias, x) if x.mean() > 10 else super().forward(x)


@pytest.mark.parametrize("by", ["gate", "block"])
@pytest.mark.parametrize(("net", "examples"), [(Hidden, 2), (Named, 2), (Named, 1)])
def test_it_stays_where_another_run_looks_into_the_layer(net: Callable[[Use], Net], examples: int, by: str) -> None:
    model, x = with_new_bias(plain_call, by, net), images()
    with pytest.warns(UserWarning, match=r"have a bias .*: conv\.bias"):
        plain = sf.fold(model, example=[x, x + 20][:examples], check=False)
    assert plain.conv.bias is not None
    for each in (x, x + 20):
        assert error(plain(each), model(each)) < EXACT


class Penalised(Net):
    """Reads the weight on another path, where the layer is not called: no norm may be merged into it."""

    def forward(self, x: Tensor) -> Tensor:
        return scaled_by(read_of([self.conv], "WEIGHT"), x) if x.mean() > 10 else super().forward(x)


def test_nothing_is_merged_into_a_layer_that_another_run_reads() -> None:
    torch.manual_seed(0)
    model, x = scatter_(prepared(Penalised(plain_call).double(), images(8))).eval(), images()
    plain, report = sf.fold(model, fuse=True, example=[x, x + 20], check=False, report=True)
    assert report.left[0].why.startswith("a tensor of 'conv' is read outside its call")
    for each in (x, x + 20):
        assert error(plain(each), model(each)) < EXACT
    merged = sf.fold(model, fuse=True, example=x, check=False)  # the control: one example does not show it
    assert error(merged(x + 20), model(x + 20)) > 1e-3


@pytest.mark.parametrize("by", ["gate", "block"])
def test_it_leaves_a_plain_call(by: str) -> None:
    model, x = with_new_bias(plain_call, by), images()
    plain = sf.fold(model, example=x, check=False)
    assert plain.conv.bias is None
    assert error(plain(x), model(x)) < EXACT
