"""A layer run with other tensors: by eager code, compiled, exported, traced."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from stripefold.algebra.scale import scale_activation
from stripefold.layers.rule import rule_for_type
from stripefold.layers.substitute import SUBSTITUTION_COMPILES, forward_with, substituted
from tests.layers.layers import noise, randomised, relative, rule_of


class Scaled(nn.Module):
    """A scaled layer as a site runs it, without the gate."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.base = layer
        self.rule = rule_of(layer)
        self.v = nn.Parameter(1.5 + noise(self.rule.channels(layer)).tanh())

    def forward(self, x: Tensor) -> Tensor:
        return forward_with(self.base, self.rule.scaled(self.base, self.v), (x,), {})


class ByMethod(nn.LayerNorm):
    """Calls its parent's forward, as many layers of other libraries do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


CASES = [
    (nn.BatchNorm2d(6), (3, 6, 4, 4)),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (3, 4, 4, 4)),
    (nn.Linear(4, 6), (3, 4)),
    (nn.LayerNorm(6), (3, 6)),
    (nn.InstanceNorm2d(6, affine=True), (3, 6, 4, 4)),
    (nn.SyncBatchNorm(6).eval(), (3, 6, 4, 4)),
]


def expected(site: Scaled, x: Tensor) -> Tensor:
    return scale_activation(copy.deepcopy(site.base)(x), site.v, site.rule.axis)


@pytest.mark.skipif(not SUBSTITUTION_COMPILES, reason="this torch cannot compile it; a site then scales the output")
@pytest.mark.parametrize(("layer", "shape"), CASES, ids=lambda case: type(case).__name__)
@pytest.mark.parametrize("train", [False, True])
def test_compiles_as_one_graph(layer: nn.Module, shape: tuple[int, ...], train: bool) -> None:
    if train and isinstance(layer, nn.SyncBatchNorm):
        train = False  # its training form needs a process group
    site, x = Scaled(randomised(copy.deepcopy(layer))).train(train), noise(*shape)
    want = expected(site, x)
    torch._dynamo.reset()
    assert relative(torch.compile(site, fullgraph=True, backend="aot_eager")(x), want) < 1e-12


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # torch's own shape checks in its norms
@pytest.mark.parametrize(("layer", "shape"), CASES, ids=lambda case: type(case).__name__)
def test_exports_and_traces(layer: nn.Module, shape: tuple[int, ...]) -> None:
    site, x = Scaled(randomised(copy.deepcopy(layer))).eval(), noise(*shape)
    want = expected(site, x)
    if SUBSTITUTION_COMPILES:
        assert relative(torch.export.export(site, (x,)).module()(x), want) < 1e-12
    assert relative(torch.fx.symbolic_trace(site)(x), want) < 1e-12
    assert relative(torch.jit.trace(site, (x,), check_trace=False)(x), want) < 1e-12


def test_reaches_a_forward_that_calls_its_parents() -> None:
    layer, x = randomised(ByMethod(5)), noise(2, 5)
    rule = rule_for_type(nn.LayerNorm)
    assert rule is not None
    v = noise(5, seed=4)
    assert relative(forward_with(layer, rule.scaled(layer, v), (x,), {}), v * layer(x)) < 1e-12


def test_running_statistics_are_the_layers_own() -> None:
    layer, x = nn.BatchNorm2d(3), noise(4, 3, 2, 2).float()
    forward_with(layer, {"weight": torch.full((3,), 2.0)}, (x,), {})
    assert int(layer.num_batches_tracked) == 1
    assert torch.allclose(layer.running_mean, 0.1 * x.mean((0, 2, 3)))


def test_the_layer_itself_is_left_alone() -> None:
    layer = nn.Linear(3, 3)
    before = layer.weight
    view = substituted(layer, {"weight": torch.zeros(3, 3)})
    assert torch.equal(view.weight, torch.zeros(3, 3))
    assert layer.weight is before
    assert type(view) is nn.Linear
