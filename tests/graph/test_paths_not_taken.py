"""Layers that did not run, and the ways around a layer that do nothing: what they may meet is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from tests.lifecycle import error, images, prepared

Forward = Callable[[Any, Tensor], Tensor]
not_announced = pytest.mark.filterwarnings("ignore:.*did not run on the example:UserWarning")


class Net(nn.Module):
    """A convolution, and behind it a norm or something that does nothing, by an attribute."""

    def __init__(self, forward: Forward, nothing: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv, self.norm, self.skip = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nothing()
        self.run, self.kind = forward, "norm"

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, self.conv(x))

    def normed(self, y: Tensor) -> Tensor:
        return self.norm(y)

    def unchanged(self, y: Tensor) -> Tensor:
        return self.skip(y)

    @property
    def off(self) -> bool:
        return self.kind != "norm"


class Lists(Net):
    """The same in containers."""

    def __init__(self, forward: Forward, nothing: Callable[[], nn.Module]) -> None:
        super().__init__(forward, nothing)
        del self.norm, self.skip
        self.parts = nn.ModuleList([nn.BatchNorm2d(4), nothing()])
        self.named = nn.ModuleDict({"norm": nn.BatchNorm2d(4), "skip": nn.Sequential(nothing(), nothing())})
        self.several = nn.Sequential(nn.BatchNorm2d(4), nothing())


class Table(Net):
    """The same in a dictionary that torch does not know of."""

    def __init__(self, forward: Forward, nothing: Callable[[], nn.Module]) -> None:
        super().__init__(forward, nothing)
        self.table = {"norm": [self.norm], "skip": [self.skip]}


def by_branch(m: Net, y: Tensor) -> Tensor:
    if m.kind == "norm":
        y = m.norm(y)
    else:
        y = y + 0
        y = m.skip(y)
    return F.gelu(y)


def by_return(m: Net, y: Tensor) -> Tensor:
    if m.off:
        return m.skip(y).relu()
    return m.norm(y).relu()


def by_match(m: Net, y: Tensor) -> Tensor:
    match m.kind:
        case "norm":
            return m.norm(y)
        case _:
            return m.skip(y)


def by_inner_function(m: Net, y: Tensor) -> Tensor:
    def normed(z: Tensor) -> Tensor:
        return m.norm(z)

    def unchanged(z: Tensor) -> Tensor:
        return m.skip(z)

    return (unchanged if m.off else normed)(y)


def by_place(m: Lists, y: Tensor) -> Tensor:
    for place, part in enumerate(m.parts):
        if place == int(m.off):
            y = part(y)
    return y


WAYS: dict[str, tuple[type[Net], Forward]] = {
    "value": (Net, lambda m, y: (m.skip if m.off else m.norm)(y)),
    "call": (Net, lambda m, y: m.skip(y) if m.off else m.norm(y)),
    "branch": (Net, by_branch),
    "return": (Net, by_return),
    "match": (Net, by_match),
    "methods": (Net, lambda m, y: m.unchanged(y) if m.off else m.normed(y)),
    "methods as values": (Net, lambda m, y: (m.unchanged if m.off else m.normed)(y)),
    "inner functions": (Net, by_inner_function),
    "pair": (Net, lambda m, y: (m.norm, m.skip)[m.off](y)),
    "dictionary": (Net, lambda m, y: {"norm": m.norm, "skip": m.skip}[m.kind](y)),
    "getattr": (Net, lambda m, y: getattr(m, m.kind)(y)),
    "getattr of two": (Net, lambda m, y: getattr(m, "skip" if m.off else "norm")(y)),
    "submodule": (Net, lambda m, y: m.get_submodule(m.kind)(y)),
    "list": (Lists, lambda m, y: m.parts[m.off](y)),
    "walk": (Lists, by_place),
    "module dictionary": (Lists, lambda m, y: m.named[m.kind](y)),
    "slice": (Lists, lambda m, y: m.several[1:](y) if m.off else m.several[:1](y)),
    "own dictionary": (Table, lambda m, y: m.table[m.kind][0](y)),
}


@not_announced
@pytest.mark.parametrize("nothing", [nn.Identity, nn.Dropout], ids=["identity", "dropout"])
@pytest.mark.parametrize("way", WAYS)
def test_a_way_around_a_norm_that_does_nothing(way: str, nothing: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    kind, forward = WAYS[way]
    model = prepared(kind(forward, nothing).double(), images()).eval()
    plain, report = sf.fold(model, fuse=True, example=images(), check=False, report=True)
    assert report.unseen
    for each in ("norm", "skip"):
        model.kind = plain.kind = each
        with torch.no_grad():
            assert error(plain(images()), model(images())) <= 1e-10
    model.kind = "norm"
    assert error(model(images()), plain(images())) > 1e-2  # the control: the two ways differ


def dropped(m: Net, y: Tensor) -> Tensor:
    y = m.norm(y)
    if m.off:
        y = m.skip(y) + y
    return y


def two_ways(m: Net, y: Tensor) -> Tensor:
    y = m.norm(y)
    if not m.off:
        return F.gelu(y, approximate="tanh")
    y = y * torch.sigmoid(m.skip(y))
    return y.flip(1)


def asked(m: Net, y: Tensor) -> Tensor:
    return F.dropout(m.norm(y), 0.5, training=m.training and m.skip is not None and m.off)


def sorted_out(m: Lists, y: Tensor) -> Tensor:
    for part in m.parts:
        if not isinstance(part, (nn.Identity, nn.Dropout)):
            y = part(y)
    return y


@pytest.mark.parametrize("nothing", [nn.Identity, nn.Dropout], ids=["identity", "dropout"])
@pytest.mark.parametrize(("kind", "forward"), [(Net, dropped), (Net, two_ways), (Net, asked), (Lists, sorted_out)])
def test_what_does_nothing_and_stands_in_no_layers_place_is_no_news(
    kind: type[Net], forward: Forward, nothing: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    model = prepared(kind(forward, nothing).double(), images()).eval()
    plain, report = sf.fold(model, fuse=True, example=images(), check=False, report=True)
    assert report.unseen == ()
    assert kind is Lists or [note.why for note in report.notes] == ["merged into conv"]
    assert error(plain(images()), model(images())) <= 1e-10


@not_announced
@pytest.mark.parametrize(
    "holder", [list, tuple, lambda pair: {"a": [*pair]}, lambda pair: {"a": dict(enumerate(pair))}]
)
def test_a_layer_that_the_code_knows_by_a_list_of_its_own(holder: Callable[[list[nn.Module]], Any]) -> None:
    def forward(m: Any, y: Tensor) -> Tensor:
        return F.gelu((m.table["a"] if isinstance(m.table, dict) else m.table)[m.off](y) * m.gain)

    torch.manual_seed(0)
    model = Net(forward, lambda: nn.Conv2d(4, 4, 1))
    model.gain = nn.Parameter(torch.full((4, 1, 1), 2.0))
    model.table = holder([model.norm, model.skip])
    model = prepared(model.double(), images()).eval()
    plain, report = sf.fold(model, fuse=True, example=images(), check=False, report=True)
    assert report.unseen == ("skip",)
    for each in ("norm", "skip"):
        model.kind = plain.kind = each
        with torch.no_grad():
            assert error(plain(images()), model(images())) <= 1e-10
