"""A structural copy runs what the model runs, and nothing that its run changes is the model's."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.modules.preserve_state import ParametersWrittenError, on_copies, preserve_state
from stripefold.modules.structural_copy import structural_copies, structural_copy


class Holder:
    """An object of the user's own."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Net(nn.Module):
    """A layer, and a state that every run moves on; where it lies is the test's."""

    def __init__(self, state: Any, step: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.state, self.step = nn.Linear(3, 3), state, step
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.layer(x) + self.step(self.state, x)


def in_dict(state: dict[str, Tensor], x: Tensor) -> Tensor:
    state["last"] = state.get("last", torch.zeros(())) + x.mean()
    return state["last"]


def in_nested(state: Any, x: Tensor) -> Tensor:
    return in_dict(state[0]["deep"][0], x)


def in_deque(state: deque[Tensor], x: Tensor) -> Tensor:
    state.append(x.mean())
    return torch.stack(list(state)).sum()


def in_object(state: Holder, x: Tensor) -> Tensor:
    state.value = state.value + x.mean()
    return state.value


def in_default(state: defaultdict[int, Tensor], x: Tensor) -> Tensor:
    state[len(x)] = state[len(x)] + 1
    return state[len(x)]


STATES: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Tensor]]] = {
    "dict": (dict, in_dict),
    "ordered": (OrderedDict, in_dict),
    "nested": (lambda: ({"deep": [{}]},), in_nested),
    "deque": (lambda: deque(maxlen=3), in_deque),
    "object": (lambda: Holder(torch.ones(())), in_object),
    "default": (lambda: defaultdict(functools.partial(torch.zeros, ())), in_default),
}


@pytest.mark.parametrize("where", STATES)
def test_state_that_a_run_moves_on_is_the_copys_own(where: str) -> None:
    torch.manual_seed(0)
    build, step = STATES[where]
    model, x = Net(build(), step).eval(), torch.randn(2, 3)
    first, second = model(x), model(x)  # the control: the state matters
    assert not torch.equal(first, second)
    copied = structural_copy(model)
    third = copied(x)
    assert torch.equal(model(x), third)
    assert float(model.runs) == 3
    assert float(copied.runs) == 3


def test_every_public_call_leaves_a_streaming_model_where_it_is() -> None:
    torch.manual_seed(0)
    model, x = Net({}, in_dict).eval(), torch.randn(2, 3)
    model(x)
    before = model.state["last"]
    sf.sites(model, where="affine", example=x)
    attached = sf.attach(model, "se", where="affine", example=x)
    sf.verify(model, sf.fold(attached.eval(), example=x, check=False), x, raise_on_mismatch=False)
    sf.fold(model, fuse=True, example=x)
    sf.observe(model, [x])
    assert model.state["last"] is before
    assert float(model.runs) == 1


def test_parameters_are_shared_and_protected() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    copied = structural_copy(model)
    for own, other in zip(model.parameters(), copied.parameters(), strict=True):
        assert own is not other
        assert own.untyped_storage()._cdata == other.untyped_storage()._cdata
    for own, other in zip(model.buffers(), copied.buffers(), strict=True):
        assert own.untyped_storage()._cdata != other.untyped_storage()._cdata
    with preserve_state(model) as run, pytest.raises(ParametersWrittenError, match="writes into a parameter"):
        run[0].weight.data.mul_(2)


class Clamps(nn.Module):
    """Keeps its weight in bounds whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.layer.weight.clamp_(-0.1, 0.1)
        return self.layer(x)


def test_a_model_that_writes_to_its_parameters_runs_on_clones() -> None:
    torch.manual_seed(0)
    model, x = Clamps(), torch.randn(2, 3)
    before = model.layer.weight.clone()
    found = on_copies(lambda copied: copied(x), model)
    assert torch.equal(model.layer.weight, before)
    assert sf.sites(model, where="affine", example=x).names == ["layer"]
    assert torch.equal(model.layer.weight, before)
    assert torch.equal(found, model(x))
    assert not torch.equal(model.layer.weight, before)  # the control: an ordinary run does write


def test_closures_hooks_and_references_are_those_of_the_copy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    kept: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, output: kept.append(output))
    model.near = weakref.ref(model[1])
    inner = model[1]
    model.forward = lambda x: model.near()(model[0](x)) + inner(x)
    copied: Any = structural_copy(model)
    x = torch.randn(2, 3)
    expected = copied(x)
    assert kept == []
    assert copied.near() is copied[1]
    assert torch.equal(model(x), expected)
    assert len(kept) == 1
    with torch.no_grad():
        copied[1].weight = nn.Parameter(torch.zeros(3, 3))
    assert not torch.equal(copied(x), expected)  # its own closure reads its own layers


def test_what_is_shared_stays_shared() -> None:
    layer = nn.Linear(3, 3)
    model = nn.ModuleList([layer, layer, nn.Linear(3, 3)])
    model[2].weight = layer.weight
    model.view = layer.weight.data[0]
    whole = torch.zeros(4)
    model.register_buffer("whole", whole)
    model.part = whole[1:3]
    copied: Any = structural_copy(model)
    assert copied[0] is copied[1]
    assert copied[2].weight is copied[0].weight
    copied.part.add_(1)
    assert copied.whole.tolist() == [0, 1, 1, 0]
    assert whole.tolist() == [0, 0, 0, 0]
    first, second = structural_copies(layer, model)
    assert second[0] is first


@pytest.mark.parametrize("kind", ["lock", "generator", "object"])
def test_what_cannot_be_copied_is_shared(kind: str) -> None:
    things: dict[str, Any] = {"lock": threading.Lock(), "generator": (n for n in range(3)), "object": object()}
    thing = things[kind]
    model = nn.Linear(3, 3)
    model.thing = thing
    model.middle = (model.weight * 2).sum()  # in the middle of a graph: ``copy.deepcopy`` raises
    copied: Any = structural_copy(model)
    assert copied.thing is thing or type(thing) is object
    assert copied.middle.grad_fn is None


def test_modes_are_those_in_which_the_model_is_used() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    model[1].train()
    with preserve_state(model) as copied:
        assert [module.training for module in copied.modules()] == [False, False, True]
    with preserve_state(model.train()) as copied:
        assert not any(module.training for module in copied.modules())
    assert all(module.training for module in model.modules())


def test_random_numbers_are_put_back_only_where_they_were_drawn() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train(), torch.randn(2, 3)
    before = torch.get_rng_state()
    with preserve_state(model) as copied:
        copied.train()(x)
        assert not torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), before)
