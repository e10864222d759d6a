"""Layers that are called with more than their rule was tried with: nothing merges across what nobody knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import AttachError
from stripefold.layers import rule as rules
from tests.layers.layers import noise, randomised


class Shifting(nn.Conv2d):
    """Adds what it is given to its output; a flag makes it a rectifier."""

    def forward(
        self, x: Tensor, shift: Tensor | None = None, rectify: bool = False, extra: dict | None = None
    ) -> Tensor:
        y = super().forward(x)
        y = y if shift is None else y + shift
        y = y if extra is None else y * extra["gain"]
        return y.clamp(min=-0.1) if rectify else y


Call = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A norm in front of such a layer, and one behind it."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.before, self.layer, self.after = nn.BatchNorm2d(3), Shifting(3, 8, 3), nn.BatchNorm2d(8)
        self.vector = nn.Parameter(torch.randn(8, 1, 1))
        self.register_buffer("steady", torch.randn(8, 1, 1))
        self.side, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.call(self, self.before(x))).relu())


CALLS: dict[str, Call] = {
    "parameter": lambda net, x: net.layer(x, net.vector),
    "parameter by name": lambda net, x: net.layer(x, shift=net.vector),
    "buffer": lambda net, x: net.layer(x, net.steady),
    "made on the spot": lambda net, x: net.layer(x, torch.ones(8, 1, 1, dtype=x.dtype)),
    "computed from a parameter": lambda net, x: net.layer(x, net.vector.exp()),
    "another map": lambda net, x: net.layer(x, net.side(x)),
    "inside a mapping": lambda net, x: net.layer(x, extra={"gain": net.vector}),
    "a flag": lambda net, x: net.layer(x, rectify=True),
}


@pytest.fixture(autouse=True)
def _taught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_rules", dict(rules.known_rules()))
    monkeypatch.setattr(rules, "_taught", set(rules._taught))
    sf.register_rule(Shifting, like=nn.Conv2d)


def made(call: Call) -> Net:
    return randomised(Net(call)).eval()


X = noise(2, 3, 7, 7)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_norms_beside_such_a_call_stay(call: Call) -> None:
    net = made(call)
    folded, report = sf.fold(net, fuse=True, check=False, example=X, report=True)
    torch.testing.assert_close(folded(X), net(X), rtol=0, atol=1e-10)
    whys = {note.name: note.why for note in report.notes if not note.folded}
    assert whys.keys() >= {"after", "before"}
    assert "is called with more than its rule was tried with" in whys["after"]


@pytest.mark.parametrize("call", [lambda net, x: net.layer(x), lambda net, x: net.layer(x, None, extra=None)])
def test_control_a_plain_call_merges_both(call: Call) -> None:
    net = made(call)
    folded, report = sf.fold(net, fuse=True, example=X, report=True)
    torch.testing.assert_close(folded(X), net(X), rtol=0, atol=1e-10)
    assert {note.name for note in report.notes if note.folded} == {"before", "after"}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_gate_on_such_a_layer_trains_as_it_folds(call: Call) -> None:
    net = made(call)
    net.after, net.head = nn.Identity(), nn.Conv2d(8, 4, 1).double()
    attached = sf.attach(net, "se", where="layer", example=X)
    small = X[:1, :, :3, :3]  # fewer numbers at the output than in the kernel
    for x in (X, small):
        torch.testing.assert_close(sf.fold(attached, check=False)(x), attached(x), rtol=0, atol=1e-10)


def test_a_transposed_convolution_may_be_told_its_size() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm = nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.up(x, output_size=[16, 16]))

    model = Up().double().eval()
    nn.init.uniform_(model.norm.weight, 0.5, 2)
    folded, report = sf.fold(model, fuse=True, example=X, report=True)
    torch.testing.assert_close(folded(X), model(X), rtol=0, atol=1e-10)
    assert [note.folded for note in report.notes] == [True]


def test_a_rule_says_how_many_inputs_its_example_has() -> None:
    like = rules.rule_for_type(nn.Bilinear)
    assert like is not None
    assert like.inputs == 2
    wrong = replace(like, inputs=1, key="x")

    class Twice(nn.Bilinear):
        pass

    sf.register_rule(Twice, rule=wrong)
    with pytest.raises(AttachError, match="its example has 2 inputs, and it says inputs=1"):
        sf.attach(nn.Sequential(Twice(3, 3, 4)), "se", where="0")
