"""Convolutions that a model uses otherwise than by a call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from stripefold.branches.block import BranchBlock
from stripefold.errors import BranchError
from tests.lifecycle import error, images, prepared

Use = Callable[[nn.Conv2d, Tensor], Tensor]


class Net(nn.Module):
    """A convolution that is called, and one that is used."""

    def __init__(self, use: Use, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode=padding_mode)
        self.conv.gain = 2.0
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.conv, self.first(x))


USES: dict[str, Use] = {
    "its own function": lambda conv, x: conv._conv_forward(x, conv.weight, conv.bias),
    "its class's function": lambda conv, x: nn.Conv2d._conv_forward(conv, x, conv.weight, conv.bias),
    "a function of torch": lambda conv, x: F.conv2d(x, conv.weight, conv.bias, padding=1),
    "a scaled weight": lambda conv, x: conv._conv_forward(x, conv.weight * conv.gain, None),
    "what it pads": lambda conv, x: F.conv2d(F.pad(x, conv._reversed_padding_repeated_twice), conv.weight, conv.bias),
}


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("use", USES)
def test_what_the_class_offers_is_there(use: str, mode: str) -> None:
    torch.manual_seed(0)
    model = sf.branch(Net(USES[use], mode).double(), "repvgg")
    assert [name for name, module in model.named_modules() if isinstance(module, BranchBlock)] == ["first", "conv"]
    prepared(model, images()).eval()
    plain = sf.fold(model, example=images())
    assert type(plain.conv) is nn.Conv2d
    assert error(plain(images()), model(images())) <= 1e-10
    with torch.no_grad():
        for parameter in model.conv.parameters():
            parameter.mul_(1.5).add_(0.1)
    assert error(plain(images()), model(images())) > 1e-3  # the control: the block's own numbers are what is used


@pytest.mark.parametrize("use", [use for use in USES if use != "what it pads"])
def test_an_example_shows_it_and_the_convolution_stays(use: str) -> None:
    model = Net(USES[use]).double()
    model.input_size = (3, 8, 8)  # by which a network says what it takes
    branched = sf.branch(model, "repvgg")
    assert type(branched.conv) is nn.Conv2d
    assert isinstance(branched.first, BranchBlock)
    with pytest.raises(BranchError, match="on 'conv': its weight is used without calling it"):
        sf.branch(model, "repvgg", where="conv")


def test_what_nobody_offers_is_an_error() -> None:
    block = sf.branch(Net(USES["a scaled weight"]), "repvgg").conv
    assert block.gain == 2.0
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = block.missing
    assert not hasattr(block, "reset_parameters")
    assert not hasattr(block, "__deepcopy__")
