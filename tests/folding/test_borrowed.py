"""Lists, dictionaries and helper objects of a model that a function of its copy goes on using."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import VerifyError
from stripefold.modules.leaked_modules import leaked_object
from tests.lifecycle import error, images, prepared


class Notes:
    """What a model notes, in an object of its own."""

    def __init__(self) -> None:
        self.y: list[Tensor] = []


class Net(nn.Module):
    """Adds what a hook has noted of the convolution, if it has noted anything."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.note: dict[str, Any] = {}
        self.list: list[Tensor] = []
        self.notes = Notes()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        noted = [*self.note.values(), *self.list, *self.notes.y]
        return x + noted[-1] if noted else x


def keep(note: dict[str, Any], module: nn.Module, args: Any, y: Tensor) -> None:
    note["y"] = y


def by_default(net: Net) -> None:
    net.conv.register_forward_hook(lambda m, a, y, note=net.note: note.update(y=y))


def by_closure(net: Net) -> None:
    kept = net.list
    net.conv.register_forward_hook(lambda m, a, y: kept.append(y))


def by_partial(net: Net) -> None:
    net.conv.register_forward_hook(functools.partial(keep, net.note))


def by_helper(net: Net) -> None:
    notes = net.notes
    net.conv.register_forward_hook(lambda m, a, y: notes.y.append(y))


def by_list_of_a_helper(net: Net) -> None:
    kept = net.notes.y
    net.conv.register_forward_pre_hook(lambda m, a: kept.append(m.weight.sum()))


def made(hold: Callable[[Net], None], kind: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    model = prepared(kind().double(), images()).eval()
    hold(model)
    return model


HOLDS = {
    "default": (by_default, "note"),
    "closure": (by_closure, "list"),
    "helper": (by_helper, "notes"),
    "list of a helper": (by_list_of_a_helper, "notes"),
}


@pytest.mark.parametrize("case", HOLDS)
def test_a_copy_that_notes_in_the_models_own_object(case: str) -> None:
    hold, name = HOLDS[case]
    model = made(hold)
    with pytest.raises(VerifyError, match=f"a hook on 'conv' holds '{name}' of the model that it was copied .*fold_"):
        sf.fold(model, fuse=True, example=images())


def test_a_copy_that_does_not_run_for_it() -> None:
    class Reading(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) + self.note["y"]

    model = made(by_default)
    model.__class__ = Reading
    with pytest.raises(VerifyError, match="KeyError: 'y'.* a hook on 'conv' holds 'note' of the model"):
        sf.fold(model, example=images())


def test_what_is_only_written_is_not_in_the_way() -> None:
    class Writing(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    model = made(by_default, Writing)
    assert error(sf.fold(model, example=images())(images()), model(images())) <= 1e-10


def by_argument(net: Net) -> None:
    net.register_forward_pre_hook(lambda m, a: m.list.append(a[0].mean()))


@pytest.mark.parametrize("hold", [by_argument, by_partial])
def test_a_hook_that_uses_its_own_argument_comes_along(hold: Callable[[Net], None]) -> None:
    model = made(hold)
    plain = sf.fold(model, fuse=True, example=images())
    assert error(plain(images()), model(images())) <= 1e-10
    assert leaked_object(plain, model) is None


def test_another_difference_has_another_reason() -> None:
    model, other = made(by_default), made(by_default)
    with torch.no_grad():
        other.norm.bias.add_(1)
    with pytest.raises(VerifyError) as caught:
        sf.verify(model, other, images())
    assert "holds" not in str(caught.value)
