"""A gate stays where what computes it is needed for something else, or where the attention moves what it is given."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.baking.apply import apply_, verify_baked
from stripefold.baking.modules import ConstantScale
from stripefold.baking.sites import plan_bake
from stripefold.stripe.discover import discover
from tests.baking.exact import assert_exact, bake_exactly, constants_for, prepare
from tests.baking.nets import SE, C, GateOnly, Net

Body = Callable[[Any, Tensor], Any]


class Permuted(SE):
    """The product runs with the channels last."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.sigmoid(self.fc2(self.fc1(x.mean((2, 3))).relu()))
        return (x.permute(0, 2, 3, 1) * v[:, None, None]).permute(0, 3, 1, 2)


class Turned(GateOnly):
    """Gives height and width back in the other order."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3) * super().forward(x)


class Scrambled(GateOnly):
    """Takes the numbers for another layout."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, h, w, c).permute(0, 3, 1, 2) * super().forward(x)


class Grouped(GateOnly):
    """One number for two neighbouring channels."""

    def forward(self, x: Tensor) -> Tensor:
        v = super().forward(x).view(len(x), C // 2, 2, 1, 1).mean(2, keepdim=True)
        return (x.view(len(x), C // 2, 2, *x.shape[2:]) * v).view_as(x)


class Kept(GateOnly):
    """Leaves its gate in an attribute."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return x * self.last


class Logit(nn.Module):
    """Gives what a sigmoid makes the gate of."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Bare(Net):
    """The body is all of it."""

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def net(body: Body, **parts: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return prepare(Bare(body, **{name: part() for name, part in parts.items()}), images())


def returned(self: Any, x: Tensor) -> Any:
    x = self.stem(x)
    v = self.gate(x)
    return self.conv(x * v), v.flatten(1)


def added(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    v = self.gate(x)
    return self.conv(x * v) + v


def branched(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    v = self.gate(x)
    y = self.conv(x * v)
    return y + 1 if v.mean() > 0.5 else y


def logit_returned(self: Any, x: Tensor) -> Any:
    x = self.stem(x)
    z = self.gate(x)
    return self.conv(x * z.sigmoid()[:, :, None, None]), z


def attribute(self: Any, x: Tensor) -> Tensor:
    y = self.gate(self.stem(x))
    return self.conv(y) + self.gate.last.mean(1, keepdim=True)


def weights_read(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    return self.conv(x * self.gate(x)) * next(self.gate.parameters()).mean()


def plain(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    return self.conv(x * self.gate(x))


def alone(self: Any, x: Tensor) -> Tensor:
    return self.conv(self.gate(self.stem(x)))


def nowhere(self: Any, x: Tensor) -> Tensor:
    return self.conv(self.gate(self.stem(x).tanh()).sigmoid())


OTHERS: dict[str, tuple[Body, type[nn.Module], str]] = {
    "returned": (returned, GateOnly, "is kept after the run"),
    "added": (added, GateOnly, "is used by 'add' in 'the model itself'"),
    "branched on": (branched, GateOnly, "is used by 'mean' in 'the model itself'"),
    "its logit returned": (logit_returned, Logit, "no module returns the gate"),
    "in an attribute": (attribute, Kept, "is kept after the run"),
    "its weights read": (weights_read, GateOnly, "is read by 'mean' outside of 'gate', which would go"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_gate_that_is_needed_elsewhere_stays(case: str) -> None:
    body, part, why = OTHERS[case]
    model, x = net(body, gate=part)
    (site,) = plan_bake(model, discover(model, x))
    assert site.how == "keep"
    with pytest.raises(ValueError, match=why):
        raise ValueError(site.why)


def test_control_a_gate_for_its_product_alone_is_baked() -> None:
    model, x = net(plain, gate=GateOnly)
    outcome = bake_exactly(model, x)
    assert outcome.how() == ["multiply"]
    assert_exact(outcome)


@pytest.mark.parametrize("part", [Turned, Scrambled, Grouped])
def test_an_attention_that_moves_what_it_is_given_keeps_its_product(part: type[nn.Module]) -> None:
    model, x = net(alone, gate=part)
    discovery = discover(model, x)
    assert [gate.whole for gate in discovery.gates] == [False]
    sites = plan_bake(model, discovery)
    v = constants_for(sites)
    baked, (final,) = apply_(copy.deepcopy(model), sites, v)
    held = v if final.how != "keep" else {}
    assert verify_baked(model, discovery.gates, baked, held, x).passed


@pytest.mark.parametrize(("body", "how"), [(alone, "forward"), (nowhere, "multiply")])
def test_channels_that_are_permuted_for_the_product_alone(body: Body, how: str) -> None:
    model, x = net(body, gate=Permuted)
    outcome = bake_exactly(model, x)
    assert outcome.how() in ([how], ["backward"])
    assert_exact(outcome)
    if how == "multiply":
        assert type(outcome.baked.gate) is ConstantScale
    wide = torch.randn(2, 3, 7, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert verify_baked(model, outcome.discovery.gates, outcome.baked, outcome.constants, wide).passed


def test_constants_of_permuted_channels_are_those_of_the_channels() -> None:
    model, _ = net(nowhere, gate=Permuted)
    data = torch.randn(8, 3, 5, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x = torch.tanh(model.stem(data))
    y = model.gate(x)
    expected = (x * y).mean((0, 2, 3)) / x.square().mean((0, 2, 3))
    baked, _ = sf.bake(model, [data], constants="least-squares")
    assert torch.allclose(baked.gate.weight.flatten(), expected)
