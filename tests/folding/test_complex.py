"""Complex numbers in a model: folding is over real numbers, so whatever is complex stays, and says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from tests.folding.test_layer_scale import MAPS, C
from tests.lifecycle import error
from tests.zoo.prepare import Randomness, randomise_


class Net(nn.Module):
    """A BatchNorm, and a parameter that meets its output in several ways."""

    def __init__(self, dtype: torch.dtype, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)
        self.constant, self.join = nn.Parameter(torch.ones(C, 1, 1, dtype=dtype)), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.norm(self.conv(x).relu()), self.constant)


def filled(join: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = torch.complex128) -> Net:
    model = Net(dtype, join)
    randomise_(model.eval(), Randomness(0))
    model.conv.double(), model.norm.double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        model.constant.copy_(0.5 + torch.rand(model.constant.shape, generator=generator, dtype=dtype))
    return model


JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product, magnitude": lambda y, c: (y * c).abs(),
    "product, real part": lambda y, c: (c * y).real,
    "product with a complex map": lambda y, c: (y.to(torch.complex128) * c).imag,
    "sum": lambda y, c: (y + c).abs(),
    "difference": lambda y, c: torch.view_as_real(y - c).sum(-1),
}


@pytest.mark.parametrize("case", JOINS)
def test_a_complex_constant_stays(case: str) -> None:
    model = filled(JOINS[case])
    plain, report = sf.fold(model, fuse=True, example=MAPS, report=True)
    why = {note.name: note.why for note in report.notes}
    assert why["constant"] == "it is complex (torch.complex128), and only real numbers are folded"
    assert error(plain(MAPS), model(MAPS)) <= 1e-10
    assert torch.equal(plain.constant, model.constant)


def test_a_complex_constant_of_ones_makes_its_map_complex_and_stays() -> None:
    class Turn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(C, 1, 1, dtype=torch.complex128))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    model = nn.Sequential(nn.Conv2d(C, C, 1).double(), Turn()).eval()
    plain, report = sf.fold(model, fuse=True, example=MAPS, report=True)
    assert plain(MAPS).is_complex()
    assert "it is complex" in report.notes[0].why


@pytest.mark.parametrize(
    ("join", "expected"),
    [
        (lambda y, c: (y.to(torch.complex128) * c).real, "folded into norm"),
        (lambda y, c: ((y * 1j) * c).imag, "folded into norm"),
        (lambda y, c: (y.to(torch.complex128) + c).abs(), "folded into norm"),
    ],
    ids=["product", "product of what is imaginary", "sum"],
)
def test_a_real_constant_on_a_complex_map_is_folded(join: Callable[[Tensor, Tensor], Tensor], expected: str) -> None:
    model = filled(join, torch.float64)
    plain, report = sf.fold(model, fuse=True, example=MAPS, report=True)
    assert expected in {note.why for note in report.notes}
    assert error(plain(MAPS), model(MAPS)) <= 1e-10
    assert error(plain(MAPS), filled(lambda y, c: join(y, c.detach() * 2), torch.float64)(MAPS)) > 1e-2


class ComplexLinear(nn.Module):
    """A complex linear layer behind which a real gain stands."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gain = nn.Linear(C, C, dtype=torch.complex128), nn.Parameter(torch.rand(C).double() + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (self.linear(x.mean((2, 3)).to(torch.complex128)) * self.gain).abs()


def test_a_complex_layer_takes_no_real_constant() -> None:
    model = ComplexLinear().eval()
    plain, report = sf.fold(model, fuse=True, example=MAPS, report=True)
    assert "linear" in report.notes[0].why
    assert "its 'weight' is complex (torch.complex128)" in report.notes[0].why
    assert torch.equal(plain.linear.weight, model.linear.weight)
    assert torch.equal(plain(MAPS), model(MAPS))


def test_a_complex_layer_is_no_site() -> None:
    with pytest.raises(sf.errors.AttachError, match="its 'weight' is complex"):
        sf.attach(ComplexLinear(), "se", where="linear", example=MAPS)
