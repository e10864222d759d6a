"""Questions to a trace: calls, consumers, followers, cancelled scales."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stripefold.errors import TraceError
from stripefold.graph.trace import Trace, trace
from tests.graph.affine import is_affine


class Net(nn.Module):
    """A few layers, and a forward that is given."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.wide = nn.BatchNorm2d(8)
        self.norm = nn.BatchNorm2d(4)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.group = nn.GroupNorm(2, 4)
        self.linear, self.flat = nn.Linear(8, 6), nn.BatchNorm1d(6)
        self.drop = nn.Dropout()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def half(m: Net, x: Tensor) -> Tensor:
    """A layer's output beside something else."""
    return torch.cat([x, m.conv(x)], 1)


def traced(forward: Callable[[Net, Tensor], Tensor]) -> Trace:
    return trace(Net(forward), torch.randn(2, 4, 8, 8), is_layer=is_affine)


def test_calls_with_shapes_and_what_was_not_called():
    result = traced(lambda m, x: m.linear(m.conv(m.conv(x))))
    assert [(call.inputs, call.outputs) for call in result.calls("conv")] == [(((2, 4, 8, 8),), ((2, 4, 8, 8),))] * 2
    assert result.calls("linear")[0].outputs == ((2, 4, 8, 6),)
    assert result.calls("norm") == []
    assert result.uncalled == ("other", "wide", "norm", "instance", "group", "flat")


@pytest.mark.parametrize("question", ["cancelled_by", "followed_by", "calls"])
def test_unknown_layer(question: str):
    with pytest.raises(TraceError, match="'drop' is not an affine layer of the traced model"):
        getattr(traced(lambda m, x: m.conv(x)), question)("drop")


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        pytest.param(lambda m, x: m.norm(m.conv(x)).relu(), "norm", id="right behind"),
        pytest.param(lambda m, x: m.norm(m.drop(m.conv(x))).relu(), "norm", id="dropout"),
        pytest.param(lambda m, x: m.norm(m.conv(x).contiguous()).relu(), "norm", id="contiguous"),
    ],
)
def test_followed_by(forward: Callable[[Net, Tensor], Tensor], expected: str):
    assert traced(forward).followed_by("conv") == expected


def test_followed_by_behind_flattened_samples():
    result = traced(lambda m, x: m.flat(m.linear(x).flatten(0, 2)).relu())
    assert result.followed_by("linear") == "flat"


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.norm(m.conv(x).relu()),
        lambda m, x: m.norm(m.conv(x) * m.scale),
        lambda m, x: m.norm(m.conv(x).transpose(2, 3)),
        lambda m, x: m.norm(y := m.conv(x)) + y,
        lambda m, x: m.norm(m.conv(m.conv(x))),
        lambda m, x: m.norm(m.norm(m.conv(x))),
        lambda m, x: m.conv(x),
        lambda m, x: x.relu(),
        lambda m, x: (m.conv(x), x)[1],
        lambda m, x: m.flat(m.conv(x).reshape(-1, 8)[:, :6]),
    ],
)
def test_not_followed(forward: Callable[[Net, Tensor], Tensor]):
    assert traced(forward).followed_by("conv") is None


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        pytest.param(lambda m, x: m.norm(m.conv(x)), "norm", id="batch norm"),
        pytest.param(lambda m, x: m.instance(m.conv(x)), "instance", id="instance norm"),
        pytest.param(lambda m, x: m.norm(m.conv(x).relu()), "norm", id="relu"),
        pytest.param(lambda m, x: m.norm(m.conv(x) * m.scale), "norm", id="times a parameter"),
        pytest.param(lambda m, x: m.wide(torch.cat([m.conv(x), x], 1)), "wide", id="concatenated"),
        pytest.param(
            lambda m, x: m.wide(half(m, x).unflatten(1, (2, 4))[:, :, 1:].repeat(1, 2, 1, 1, 1).flatten(1, 2)[:, :8]),
            None,
            id="cut",
        ),
        pytest.param(
            lambda m, x: m.wide(half(m, x).unflatten(1, (4, 2)).mT.mT.flatten(1, 2)), "wide", id="turned twice"
        ),
        pytest.param(
            lambda m, x: m.wide(half(m, x).view(2, 2, 4, 8, 8).transpose(1, 2).reshape(x.shape[0], 8, 8, 8)),
            "wide",
            id="shuffled by hand",
        ),
        pytest.param(lambda m, x: m.wide(half(m, x).flatten(2).unflatten(2, (8, 8))), "wide", id="joined, reshaped"),
        pytest.param(lambda m, x: m.norm(torch.cat([torch.empty(0), m.conv(x)], 1)), "norm", id="joined to nothing"),
        pytest.param(lambda m, x: m.norm(torch.cat([m.conv(x), x], 2)), None, id="joined along rows"),
        pytest.param(lambda m, x: m.norm(half(m, x).view(4, 4, 8, 8)), None, id="joined, then stacked"),
        pytest.param(lambda m, x: m.norm(half(m, x).view(2, 4, 2, 8, 8).sum(2)), None, id="joined, then added"),
        pytest.param(lambda m, x: (y := m.conv(x), m.norm(y) + m.instance(y))[1], "norm", id="two norms"),
        pytest.param(lambda m, x: m.group(m.conv(x)), None, id="group norm"),
        pytest.param(lambda m, x: m.norm(m.conv(x).sigmoid()), None, id="sigmoid"),
        pytest.param(lambda m, x: m.norm(m.conv(x) + m.scale), None, id="plus a parameter"),
        pytest.param(lambda m, x: m.norm(m.conv(x) * x), None, id="times a map"),
        pytest.param(lambda m, x: m.norm(y := m.conv(x)) + y, None, id="used elsewhere"),
        pytest.param(lambda m, x: (m.norm(y := m.conv(x)), y), None, id="returned too"),
        pytest.param(lambda m, x: m.norm(m.other(m.conv(x))), None, id="another layer between"),
        pytest.param(lambda m, x: m.wide(m.conv(x).transpose(1, 2)), None, id="norm over another axis"),
        pytest.param(lambda m, x: m.wide(m.conv(x).permute(0, 2, 1, 3)), None, id="norm over rows"),
        pytest.param(lambda m, x: m.norm(m.conv(x).mT.flatten(2)[..., None]), "norm", id="channels stay second"),
        pytest.param(lambda m, x: x.relu(), None, id="not called"),
    ],
)
def test_cancelled_by(forward: Callable[[Net, Tensor], Tensor], expected: str | None):
    assert traced(forward).cancelled_by("conv") == expected


def test_cancelled_behind_a_linear_layer():
    behind = traced(lambda m, x: m.flat(m.linear(x).flatten(0, 2)))
    assert behind.cancelled_by("linear") == "flat"
    moved = traced(lambda m, x: m.flat(m.linear(x[:, 0]).transpose(1, 2)))
    assert moved.cancelled_by("linear") == "flat"
    rows = traced(lambda m, x: m.wide(m.linear(x).transpose(1, 2)))
    assert rows.cancelled_by("linear") is None


def test_opaque_layers_hide_what_is_inside():
    class Wrapper(nn.Sequential):
        pass

    model = nn.Sequential(Wrapper(nn.Conv2d(4, 4, 1), nn.ReLU()), nn.BatchNorm2d(4))
    result = trace(model, torch.randn(2, 4, 8, 8), is_layer=lambda m: isinstance(m, Wrapper) or is_affine(m))
    assert result.followed_by("0") == "1"
    assert [call.name for call in result.graph.calls] == ["0", "1"]
    with pytest.raises(TraceError, match=r"'0\.0' is not an affine layer"):
        result.calls("0.0")


def test_the_root_may_be_the_layer():
    result = trace(nn.Linear(3, 2), torch.randn(1, 3), is_layer=is_affine)
    assert result.calls("")[0].outputs == ((1, 2),)


def test_a_layer_registered_twice_has_its_first_name():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared})
    model.forward = lambda x: model["b"](model["a"](x))
    assert len(trace(model, torch.randn(1, 4), is_layer=is_affine).calls("a")) == 2


def test_tied_weights_used_by_their_holder_are_no_call_of_the_other_layer():
    model = nn.ModuleDict({"head": nn.Linear(4, 9, bias=False), "table": nn.Embedding(9, 4)})
    model["table"].weight = model["head"].weight
    model.forward = lambda ids: model["head"](model["table"](ids))
    result = trace(model, torch.tensor([[1, 2]]), is_layer=is_affine)
    assert len(result.calls("head")) == 1


def test_weights_read_by_another_module_are_an_implicit_call():
    model = nn.ModuleDict({"linear": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})

    def forward(x: Tensor) -> Tensor:
        y = nn.functional.linear(x, model["linear"].weight * 2, model["linear"].bias)
        return x + nn.functional.layer_norm(y, (4,), model["norm"].weight, model["norm"].bias)

    model.forward = forward
    result = trace(model, torch.randn(2, 4), is_layer=is_affine)
    assert [(call.name, call.implicit) for call in result.graph.calls] == [("linear", True), ("norm", True)]
    assert [tail.name for tail in result.residual_tails()] == ["norm"]
