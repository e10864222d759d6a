"""What a recorded run does not show as a value of its own stops a merge, with nothing checked afterwards."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from stripefold.modules.tensors import tensors_of
from tests.layers.layers import noise, randomised

BOX: dict[str, Any] = {}
X = noise(2, 3, 6, 6)


@dataclasses.dataclass(slots=True)
class Slots:
    result: Tensor
    features: Tensor


class Net(nn.Module):
    """A norm behind one convolution, and one in front of another."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.behind = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.front, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)
        self.register_buffer("state", torch.zeros(4))
        self.memory: list[Tensor] = []
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(self, F.softplus(self.behind(self.first(x))))


def made(call: Callable[..., Any]) -> Net:
    return randomised(Net(call)).eval()


@torch.no_grad()
def difference(net: Net, example: Any = X) -> tuple[float, set[str]]:
    """Over three calls, and in what is kept; and which norms were merged."""
    folded, report = sf.fold(net, fuse=True, check=False, example=example, report=True)
    original, worst = copy.deepcopy(net), 0.0
    for _ in range(3):
        ours = [t for _, t in tensors_of((original(example), original.memory, original.state))]
        theirs = [t for _, t in tensors_of((folded(example), folded.memory, folded.state))]
        worst = max([worst, *(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True) if a.numel())])
    return worst, {note.name for note in report.notes if note.folded}


def keeps(net: Net, y: Tensor) -> Any:
    y = net.front(y)
    extra = sum(each.tanh().mean() for each in net.memory)
    net.memory.append(y)
    return net.last(y) + extra


def keeps_detached(net: Net, y: Tensor) -> Any:
    y = net.front(y)
    net.memory.append(y.mean((2, 3)).detach())
    return net.last(y)


def assigns_buffer(net: Net, y: Tensor) -> Any:
    y = net.front(y)
    out = net.last(y) + net.state.tanh().mean()
    net.state = y.mean((0, 2, 3))
    return out


def pickles(net: Net, y: Tensor) -> Any:
    y = net.front(y)
    return net.last(y) + pickle.loads(pickle.dumps(y)).tanh().mean()


def slots(net: Net, y: Tensor) -> Any:
    y = net.front(y)
    return Slots(net.last(y), y)


def other_weights(net: Net, y: Tensor) -> Any:
    return torch.func.functional_call(net.last, {"weight": torch.ones(5, 4, 1, 1).double()}, (net.front(y),))


def other_eps(net: Net, y: Tensor) -> Any:
    list(net.children())[2].eps = 0.5
    return net.last(net.front(y))


def trains(net: Net, y: Tensor) -> Any:
    list(net.children())[2].train()
    return net.last(net.front(y))


def overwrites(net: Net, y: Tensor) -> Any:
    nn.init.ones_(list(net.children())[3].weight)
    return net.last(net.front(y))


def reads_list(net: Net, y: Tensor) -> Any:
    return net.last(net.front(y)) + sum(list(net.parameters())[-1].tolist())


def with_hook(hook: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def call(net: Net, y: Tensor) -> Any:
        BOX.clear()
        out = net.last(net.front(y))
        return out if "seen" not in BOX else out + BOX["seen"]

    call.hook = hook  # type: ignore[attr-defined]
    return call


KINDS: dict[str, Callable[..., Any]] = {
    "kept in a list": keeps,
    "kept without its gradient": keeps_detached,
    "assigned to a buffer": assigns_buffer,
    "pickled": pickles,
    "returned in slots": slots,
    "called with other weights": other_weights,
    "called with another eps": other_eps,
    "put into training mode": trains,
    "overwritten": overwrites,
    "read as a list": reads_list,
    "computed in a hook": with_hook(lambda layer, args: BOX.update(seen=args[0].tanh().mean(1, keepdim=True))),
    "read in a hook": with_hook(lambda layer, args: BOX.update(seen=float(args[0].tanh().mean()))),
    "assigned in a hook": with_hook(lambda layer, args: setattr(layer.weight, "data", torch.ones(5, 4, 1, 1).double())),
}


def prepared(call: Callable[..., Any]) -> Net:
    net = made(call)
    if hasattr(call, "hook"):
        net.last.register_forward_pre_hook(call.hook)
    return net


@pytest.mark.parametrize("call", KINDS.values(), ids=KINDS)
def test_the_norm_in_front_stays(call: Callable[..., Any]) -> None:
    worst, merged = difference(prepared(call))
    assert worst < 1e-10
    assert "front" not in merged


def test_control_without_it_both_norms_merge() -> None:
    worst, merged = difference(made(lambda net, y: net.last(net.front(y))))
    assert worst < 1e-10
    assert merged == {"behind", "front"}


def catches(net: Net, y: Tensor) -> Tensor:
    z = net.front(y)
    try:
        raise ValueError
    except ValueError as error:
        caught = error  # its traceback holds this frame, which holds it
    return net.last(z) if caught else z


def recurs(net: Net, y: Tensor) -> Tensor:
    z = net.front(y)

    def again(times: int) -> Tensor:
        return again(times - 1) if times else z

    return net.last(again(2))


def cycles(net: Net, y: Tensor) -> Tensor:
    box: list[Any] = [y, net.front(y)]
    box.append(box)
    return net.last(box[1])


@pytest.mark.parametrize("call", [catches, recurs, cycles])
def test_control_garbage_in_a_cycle_is_kept_by_nobody(call: Callable[..., Any]) -> None:
    worst, merged = difference(made(call))
    assert worst < 1e-10
    assert merged == {"behind", "front"}


def test_control_a_harmless_hook_hinders_nothing() -> None:
    worst, merged = difference(prepared(with_hook(lambda layer, args: None)))
    assert worst < 1e-10
    assert merged == {"behind", "front"}


OUT: dict[str, Callable[..., Any]] = {
    "a sum": lambda net, y: net.last(torch.add(net.front(y), y.mean(1, keepdim=True), out=torch.empty_like(y))),
    "a concatenation": lambda net, y: net.last(torch.cat([net.front(y)[:, :2], y[:, :2]], 1, out=torch.empty_like(y))),
}


@pytest.mark.parametrize(
    ("call", "expected"), [(OUT["a sum"], {"behind"}), (OUT["a concatenation"], {"behind", "front"})], ids=OUT
)
def test_what_out_names_is_no_operand(call: Callable[..., Any], expected: set[str]) -> None:
    worst, merged = difference(made(call))
    assert worst < 1e-10
    assert merged == expected


def test_an_empty_example_is_refused_where_it_shows_no_layout() -> None:
    net = made(lambda net, y: net.last(net.front(y).flatten(2).view(y.shape)))
    assert difference(net, X[:0])[0] == 0
    _, report = sf.fold(net, fuse=True, check=False, example=X[:0], report=True)
    assert "it is empty on this example" in next(note.why for note in report.notes if note.name == "front")


def test_a_hook_inside_a_layer_is_a_reason_to_leave_it() -> None:
    bnact = pytest.importorskip("timm.layers").BatchNormAct2d
    model = nn.Sequential(nn.Conv2d(3, 4, 1), bnact(4)).double().eval()
    assert sf.fold(model, fuse=True, example=X, report=True)[1].notes[0].folded
    model[1].act.register_forward_hook(lambda layer, args, out: out * 2)
    folded, report = sf.fold(model, fuse=True, check=False, example=X, report=True)
    torch.testing.assert_close(folded(X), model(X), rtol=0, atol=1e-10)
    assert "hooks run inside it, on 'act'" in report.notes[0].why
