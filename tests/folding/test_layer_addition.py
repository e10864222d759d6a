"""Static per-channel additions that a model carries: folded into a bias, in front or behind, or named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, nn

import stripefold as sf
from tests.branches.blocks import PROPERTY, convolutions, example_for
from tests.folding.test_layer_scale import MAPS, ROWS, C, Scale, numbers
from tests.lifecycle import error
from tests.zoo.prepare import Randomness, randomise_


class Shift(nn.Module):
    """An addition that no library knows, written to take the value over or not."""

    def __init__(self, *shape: int, how: str = "add") -> None:
        super().__init__()
        self.offset, self.how = nn.Parameter(torch.zeros(shape)), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "in place":
            return x.add_(self.offset)
        if self.how == "subtracted":
            return x - self.offset
        return torch.add(x, self.offset, alpha=2) if self.how == "alpha" else x + self.offset


class Step(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def fused(model: nn.Module, x: Tensor) -> tuple[nn.Module, dict[str, str]]:
    """The fused model, equal to the model with random additions; a control without them differs."""
    model.double().eval()
    randomise_(model, Randomness(0))
    offsets = [name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "offset"]
    with torch.no_grad():
        for name in offsets:  # of both signs, away from 0
            size = 0.5 + numbers(*model.get_parameter(name).shape).abs()
            model.get_parameter(name).copy_(size * (-1) ** torch.arange(size.numel()).view(size.shape))
    plain, report = sf.fold(model, fuse=True, example=x, check=False, report=True)
    bare = copy.deepcopy(model)
    with torch.no_grad():
        for name in offsets:
            bare.get_parameter(name).zero_()
        expected = model(x.clone())
        assert error(plain(x.clone()), expected) <= 1e-10
        assert error(bare(x.clone()), expected) > 1e-2
    return plain, {note.name: note.why for note in report.notes}


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


MODULES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolution": (lambda: nn.Sequential(nn.Conv2d(C, C, 3, padding=1), Shift(C, 1, 1)), MAPS),
    "in place": (lambda: nn.Sequential(nn.Conv2d(C, C, 3), Shift(C, 1, 1, how="in place")), MAPS),
    "subtracted": (lambda: nn.Sequential(nn.Conv2d(C, C, 3), Shift(C, 1, 1, how="subtracted")), MAPS),
    "grouped, transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(C, C, 3, groups=2), Shift(1, C, 1, 1)), MAPS),
    "no bias yet": (lambda: nn.Sequential(nn.Linear(C, C, bias=False), Shift(C)), ROWS),
    "dropout between": (lambda: nn.Sequential(nn.Linear(C, C), nn.Dropout(0.5), Shift(C)), ROWS),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(C), Shift(C)), ROWS),
    "layer norm without bias": (lambda: nn.Sequential(nn.LayerNorm(C, bias=False), Shift(C)), ROWS),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), Shift(C, 1, 1)), MAPS),
    "before a batch norm": (lambda: nn.Sequential(nn.Conv2d(C, C, 1), Shift(C, 1, 1), nn.BatchNorm2d(C)), MAPS),
    "two of them": (lambda: nn.Sequential(nn.Linear(C, C), Shift(C), Shift(1, 1, C)), ROWS),
    "one number": (lambda: nn.Sequential(nn.Conv2d(C, C, 1), Shift(1)), MAPS),
    "no dimension": (lambda: nn.Sequential(nn.Linear(C, C), Shift()), ROWS),
    "behind a scale": (lambda: nn.Sequential(nn.Linear(C, C), Scale(C), Shift(C)), ROWS),
    "before a scale": (lambda: nn.Sequential(nn.Linear(C, C), Shift(C), Scale(C)), ROWS),
    "between scales": (lambda: nn.Sequential(nn.Linear(C, C), Scale(C), Shift(C), Scale(C)), ROWS),
    "in front": (lambda: nn.Sequential(nn.Tanh(), Shift(C, 1, 1), nn.Conv2d(C, 4, 3)), MAPS),
    "in front, depthwise": (lambda: nn.Sequential(nn.Tanh(), Shift(C, 1, 1), nn.Conv2d(C, C, 3, groups=C)), MAPS),
    "in front, its own padding": (
        lambda: nn.Sequential(nn.Tanh(), Shift(C, 1, 1), nn.Conv2d(C, 4, 3, padding=1, padding_mode="reflect")), MAPS
    ),
    "in front, subtracted": (lambda: nn.Sequential(nn.Tanh(), Shift(C, how="subtracted"), nn.Linear(C, 4)), ROWS),
    "in front, with scales": (
        lambda: nn.Sequential(nn.Tanh(), Scale(C), Shift(C), Scale(C), Shift(C), nn.Linear(C, 4)), ROWS
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MODULES)
def test_a_module_that_only_adds_is_gone(case: str) -> None:
    build, x = MODULES[case]
    plain, why = fused(build(), x)
    assert not any(isinstance(module, (Shift, Scale)) for module in plain.modules())
    assert all("folded into" in reason or "merged into" in reason for reason in why.values())
    assert not any("offset" in key for key in plain.state_dict())
    again, report = sf.fold(plain, fuse=True, example=x, report=True)
    assert report.folded == ()
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in plain.state_dict().items())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # torch's own convolution
@PROPERTY
@given(convolution=convolutions())
def test_any_convolution_takes_what_is_added_behind_it(convolution: Any) -> None:
    x, channels = example_for(convolution), convolution.out_channels
    ones = (1,) * len(convolution.kernel_size)
    plain, why = fused(nn.Sequential(convolution, Scale(channels, *ones), Shift(channels, *ones)), x)
    assert why == {"1": "folded into 0", "2": "folded into 0"}
    assert sorted(plain.state_dict()) == ["0.bias", "0.weight"]
    assert plain[0].extra_repr().replace(", bias=False", "") == convolution.extra_repr().replace(", bias=False", "")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@PROPERTY
@given(convolution=convolutions())
def test_any_convolution_takes_what_is_added_in_front_unless_it_pads_with_zeros(convolution: Any) -> None:
    x, channels = example_for(convolution), convolution.in_channels
    ones = (1,) * len(convolution.kernel_size)
    plain, why = fused(nn.Sequential(nn.Tanh(), Shift(channels, *ones), convolution), x)
    padded = any(convolution._reversed_padding_repeated_twice) and convolution.padding_mode == "zeros"
    assert isinstance(plain[1], Shift) == padded
    assert ("zero padding" in why["1"]) == padded


class Residual(nn.Module):
    """x + branch(x) + offset, the addition a parameter of this very block."""

    def __init__(self, branch: nn.Module, *shape: int) -> None:
        super().__init__()
        self.branch, self.offset = branch, nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) + self.offset


def test_a_parameter_of_a_block_becomes_zeros_and_goes_into_one_summand() -> None:
    model = Residual(nn.Sequential(nn.Conv2d(C, C, 3, padding=1)), C, 1, 1)
    plain, why = fused(model, MAPS)
    assert why == {"offset": "folded into branch.0"}
    assert torch.equal(plain.offset, torch.zeros(C, 1, 1, dtype=torch.float64))
    assert plain.offset.requires_grad
    assert not torch.equal(model.offset, plain.offset)


class Halves(nn.Module):
    """Two layers, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shift = nn.Linear(C, 2), nn.Linear(C, C - 2), Shift(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.shift(torch.cat([self.a(x), self.b(x)], -1))


def test_each_layer_of_a_concatenation_takes_its_piece() -> None:
    plain, why = fused(Halves(), ROWS)
    assert why == {"shift": "folded into a, b"}
    assert isinstance(plain.shift, nn.Identity)


class Rms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.shift = nn.RMSNorm(C), Shift(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.shift(self.norm(x))


def padded(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1))


KEPT: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "position embedding": (lambda: nn.Sequential(nn.Linear(C, C), Shift(5, C)), ROWS, "differs along 2 axes: (5, 6)"),
    "per position": (lambda: nn.Sequential(nn.Linear(C, C), Shift(5, 1)), ROWS, "not the channels at the output of"),
    "rectifier": (lambda: nn.Sequential(nn.Linear(C, C), nn.ReLU(), Shift(C)), ROWS, "'relu' in '1' does not pass on"),
    "zeros between": (
        lambda: nn.Sequential(nn.Conv2d(C, C, 1), Step(padded), Shift(C, 1, 1)), MAPS, "'constant_pad_nd' in '1' does"
    ),
    "zeros counted": (
        lambda: nn.Sequential(nn.Conv2d(C, C, 1), nn.AvgPool2d(3, 1, 1), Shift(C, 1, 1)), MAPS, "'avg_pool2d' in '1'"
    ),
    "another divisor": (
        lambda: nn.Sequential(nn.Conv2d(C, C, 1), nn.AvgPool2d(2, divisor_override=1), Shift(C, 1, 1)), MAPS,
        "'avg_pool2d' in '1' does not pass on",
    ),
    "zero padding behind": (
        lambda: nn.Sequential(nn.Tanh(), Shift(C, 1, 1), nn.Conv2d(C, 4, 3, padding=1)), MAPS,
        "behind it: '2': its zero padding would have to become the shift",
    ),
    "no bias in front": (Rms, ROWS, "'norm': RMSNorm has no place for a bias"),
    "the input": (lambda: nn.Sequential(Shift(C), nn.Tanh()), ROWS, "no layer's output but the model's input"),
    "returned": (
        lambda: nn.Sequential(nn.Tanh(), Shift(C)), ROWS, "behind it: what is shifted is returned by the model"
    ),
    "a norm behind": (
        lambda: nn.Sequential(nn.Tanh(), Shift(C), nn.LayerNorm(C)), ROWS, "LayerNorm takes no shift of its input"
    ),
    "activation in the layer": (
        lambda: nn.Sequential(torch_norm_act(), Shift(C, 1, 1)), MAPS, "an activation in '0' stands behind its bias"
    ),
}  # fmt: skip


def torch_norm_act() -> nn.Module:
    timm = pytest.importorskip("timm")
    norm: nn.Module = timm.layers.BatchNormAct2d(C)
    return norm


@pytest.mark.parametrize("case", KEPT)
def test_what_stays_and_why(case: str) -> None:
    build, x, reason = KEPT[case]
    model = build()
    plain, why = fused(model, x)
    (name,) = [name for name, module in model.named_modules() if isinstance(module, Shift)]
    assert reason in (why[name] if name in why else why[f"{name}.offset"])
    assert torch.equal(plain.get_submodule(name).offset, model.get_submodule(name).offset)


class Other(nn.Module):
    """The value, or the addition itself, is used once more."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.branch, self.offset = how, nn.Linear(C, C), nn.Parameter(torch.zeros(C))
        self.again = nn.Linear(C, C)
        if how == "tied":
            self.again.bias = self.offset

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.how == "used unshifted":
            return (y + self.offset) * torch.tanh(y)
        if self.how == "used twice":
            return torch.tanh(y + self.offset) + torch.tanh(self.again(x) + self.offset)
        if self.how == "subtrahend":
            return torch.sigmoid(x) - y + self.offset
        return self.again(torch.tanh(y + self.offset))


@pytest.mark.filterwarnings("ignore:.again. did not run on the example:UserWarning")
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("used unshifted", "is used unshifted, too, by 'tanh'"),
        ("used twice", "offset is used 2 times"),
        ("tied", "offset is tied to again.bias"),
        ("subtrahend", "'sigmoid' in the model itself does not pass on what is added to its operand"),
    ],
)
def test_what_is_used_elsewhere_stays(how: str, reason: str) -> None:
    model = Other(how)
    plain, why = fused(model, ROWS)
    assert reason in why["offset"]
    assert torch.equal(plain.offset, model.offset)


def test_a_factor_of_the_addition_is_not_overlooked() -> None:
    model = nn.Sequential(nn.Linear(C, C), Shift(C, how="alpha"))
    plain, why = fused(model, ROWS)
    assert why == {}
    assert torch.equal(plain[1].offset, model[1].offset)


class Weighted(nn.Module):
    """a + alpha b + offset: b takes the addition over alpha."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shift = nn.Linear(C, C), nn.Linear(C, C), Shift(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.shift(torch.add(self.a(x).tanh(), self.b(x), alpha=3))


def test_a_summand_with_a_factor_takes_its_share_of_an_addition() -> None:
    _, why = fused(Weighted(), ROWS)
    assert why["shift"] == "folded into b"


class Odd(nn.Linear):
    """Its bias counts twice: a scale of its output goes into its tensors, an addition does not."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + 2 * self.bias


def test_a_layer_whose_bias_is_no_addition_is_found_out() -> None:
    sf.register_rule(Odd, like=nn.Linear)
    _, why = fused(nn.Sequential(Odd(C, C), Shift(C)), ROWS)
    assert "adding to its bias is not adding to its output" in why["1"]
    _, why = fused(nn.Sequential(Odd(C, C), Scale(C), Shift(C)), ROWS)
    assert why["1"] == "folded into 0"  # the control: its scale folds


def test_additions_that_are_not_finite_or_do_not_fit_stay() -> None:
    model = nn.Sequential(nn.Linear(C, C), Shift(C)).double()
    with torch.no_grad():
        model[1].offset.fill_(float("inf"))
    _, report = sf.fold(model, fuse=True, example=ROWS, check=False, report=True)
    assert report.left[0].why == "it is not finite"
    with torch.no_grad():
        model[1].offset.fill_(60000.0)
        model[0].bias.fill_(60000.0)
    _, report = sf.fold(model.half(), fuse=True, example=ROWS.half(), check=False, report=True)
    assert report.left[0].why.startswith("the merged bias overflows torch.float16; behind it: ")


def test_zeros_leave_an_identity_and_no_trace() -> None:
    plain, report = sf.fold(
        nn.Sequential(nn.Tanh(), Shift(C)), fuse=True, example=ROWS.float(), check=False, report=True
    )
    assert report.notes[0].why == "it was zeros"
    assert isinstance(plain[1], nn.Identity)
    block = Residual(nn.Linear(C, C), C)
    plain, report = sf.fold(block, fuse=True, example=ROWS.float(), check=False, report=True)
    assert report.notes == ()
    assert torch.equal(plain.branch.bias, block.branch.bias)
