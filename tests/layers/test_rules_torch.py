"""Every rule for torch's and torchvision's layers: both sides, both modes, float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.video.resnet import Conv3DNoTemporal, Conv3DSimple
from torchvision.ops.misc import FrozenBatchNorm2d

from stripefold.errors import FoldError
from stripefold.layers.accepts import Acceptance
from stripefold.layers.rule import rule_for
from stripefold.layers.substitute import forward_with
from tests.layers.layers import EXACT, absorbed, input_errors, noise, output_errors, randomised, rule_of, signed_scale

Factory = Callable[[], nn.Module]
NORMS: list[tuple[Factory, tuple[int, ...]]] = [
    (lambda: nn.BatchNorm1d(5), (4, 5, 3)),
    (lambda: nn.BatchNorm1d(5), (4, 5)),
    (lambda: nn.BatchNorm2d(5), (4, 5, 3, 2)),
    (lambda: nn.BatchNorm2d(5, momentum=None), (4, 5, 3, 2)),
    (lambda: nn.BatchNorm2d(5, track_running_stats=False), (4, 5, 3, 2)),
    (lambda: nn.BatchNorm3d(5), (4, 5, 2, 3, 2)),
    (lambda: FrozenBatchNorm2d(5), (4, 5, 3, 2)),
    (lambda: nn.GroupNorm(2, 6), (2, 6, 3)),
    (lambda: nn.GroupNorm(1, 6), (2, 6, 3, 2)),
    (lambda: nn.LayerNorm(5), (2, 3, 5)),
    (lambda: nn.LayerNorm(5, bias=False), (2, 3, 5)),
    (lambda: nn.RMSNorm(5), (2, 3, 5)),
    (lambda: nn.InstanceNorm1d(5, affine=True), (2, 5, 4)),
    (lambda: nn.InstanceNorm2d(5, affine=True), (2, 5, 4, 3)),
    (lambda: nn.InstanceNorm2d(5, affine=True, track_running_stats=True), (2, 5, 4, 3)),
    (lambda: nn.InstanceNorm3d(5, affine=True), (2, 5, 2, 3, 2)),
    (lambda: LayerNorm2d(5), (2, 5, 3, 2)),
]
LINEAR: list[tuple[Factory, tuple[int, ...]]] = [
    (lambda: nn.Linear(4, 6), (2, 3, 4)),
    (lambda: nn.Linear(4, 6, bias=False), (3, 4)),
    (lambda: NonDynamicallyQuantizableLinear(4, 6), (2, 3, 4)),
    (lambda: Conv3DSimple(3, 4), (2, 3, 3, 4, 4)),
    (lambda: Conv3DNoTemporal(3, 4), (2, 3, 3, 4, 4)),
    (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 5)),
    (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 5, 5)),
    (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 4, 4)),
]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("factory", "shape"), [*NORMS, *LINEAR])
def test_output_side(factory: Factory, shape: tuple[int, ...], train: bool) -> None:
    error, control = output_errors(factory(), (noise(*shape),), train=train)
    assert error <= EXACT
    assert control > 0.1


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("factory", "shape"), LINEAR)
def test_input_side(factory: Factory, shape: tuple[int, ...], train: bool) -> None:
    error, control = input_errors(factory(), (noise(*shape),), train=train)
    assert error <= EXACT
    assert control > 0.1


@pytest.mark.parametrize(("factory", "shape"), [NORMS[i] for i in (0, 2, 5, 6)])
def test_batchnorm_takes_an_input_scale_in_eval_mode_even_zero(factory: Factory, shape: tuple[int, ...]) -> None:
    error, control = input_errors(factory(), (noise(*shape),), train=False)
    assert error <= EXACT
    assert control > 0.1


def test_batchnorm_input_side_is_eval_only_because_batch_statistics_undo_the_scale() -> None:
    error, _ = input_errors(nn.BatchNorm2d(5), (noise(4, 5, 3, 2),), train=True)
    assert error > 0.1
    assert rule_of(nn.BatchNorm2d(5)).input_eval_only
    assert not rule_of(FrozenBatchNorm2d(5)).input_eval_only


def test_sync_batchnorm_scales_on_the_cpu_in_eval_mode() -> None:
    # In train mode it needs a process group; the distributed tests have one.
    error, control = output_errors(nn.SyncBatchNorm(5), (noise(4, 5, 3, 2),), train=False)
    assert error <= EXACT < control


def test_bilinear_output_side() -> None:
    error, control = output_errors(nn.Bilinear(3, 4, 5), (noise(2, 3), noise(2, 4, seed=5)), train=False)
    assert error <= EXACT < control
    assert rule_of(nn.Bilinear(3, 4, 5)).input is None


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
small = st.integers(1, 3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    dims=small, groups=small, inner=small, outer=small, kernel=small, stride=small, dilation=st.integers(1, 2),
    padding=st.integers(0, 2), bias=st.booleans(), mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
)  # fmt: skip
def test_convolution_both_sides(dims, groups, inner, outer, kernel, stride, dilation, padding, bias, mode) -> None:
    def layer() -> nn.Module:
        return CONVOLUTIONS[dims](
            groups * inner, groups * outer, kernel, stride=stride, dilation=dilation, padding=padding, groups=groups,
            bias=bias, padding_mode=mode,
        )  # fmt: skip

    if mode == "reflect" and dims == 3 and padding == 0:
        padding = 1
    x = noise(2, groups * inner, *(6,) * dims)
    assert output_errors(layer(), (x,), train=False)[0] <= EXACT
    assert input_errors(layer(), (x,), train=False)[0] <= EXACT


@settings(max_examples=40, deadline=None, derandomize=True)
@given(dims=small, groups=small, inner=small, outer=small, kernel=small, stride=small, padding=st.integers(0, 1),
       bias=st.booleans())  # fmt: skip
def test_transposed_convolution_both_sides(dims, groups, inner, outer, kernel, stride, padding, bias) -> None:
    def layer() -> nn.Module:
        return TRANSPOSED[dims](
            groups * inner, groups * outer, kernel, stride=stride, padding=min(padding, kernel - 1), groups=groups,
            bias=bias,
        )  # fmt: skip

    x = noise(2, groups * inner, *(4,) * dims)
    assert output_errors(layer(), (x,), train=False)[0] <= EXACT
    assert input_errors(layer(), (x,), train=False)[0] <= EXACT


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm2d(3, track_running_stats=False), "without running statistics"),
        (nn.BatchNorm2d(3), "no bias"),
    ],
)
def test_batchnorm_without_statistics_or_bias_has_no_input_side(layer: nn.Module, reason: str) -> None:
    if layer.running_mean is not None:
        layer.bias = None
    assert reason in str(Acceptance(layer)("", "input"))


def test_a_norm_over_its_own_input_has_no_input_side() -> None:
    with pytest.raises(FoldError, match="has no input side"):
        absorbed(nn.LayerNorm(3), torch.ones(3), "input")


def test_exact_type_only() -> None:
    class Clipped(nn.BatchNorm2d):
        pass

    assert rule_for(Clipped(3)) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_are_rounded_once_to_the_parameters_dtype(dtype: torch.dtype) -> None:
    layer = randomised(nn.Conv2d(4, 6, 3)).to(dtype)
    v = signed_scale(6)
    scaled = rule_of(layer).scaled(layer, v)
    assert torch.equal(scaled["weight"], (layer.weight.double() * v.view(-1, 1, 1, 1)).to(dtype))
    assert scaled["bias"].dtype == dtype


def test_gradients_equal_those_of_the_product_on_the_output() -> None:
    layer, x = randomised(nn.BatchNorm2d(5)).train(), noise(4, 5, 3, 2)
    v = signed_scale(5).requires_grad_()
    wanted = (v, layer.weight, layer.bias)
    direction = noise(4, 5, 3, 2, seed=9)
    product = torch.autograd.grad((layer(x) * v.view(-1, 1, 1) * direction).sum(), wanted)
    scaled = torch.autograd.grad(
        (forward_with(layer, rule_of(layer).scaled(layer, v), (x,), {}) * direction).sum(), wanted
    )
    for value, expected in zip(scaled, product, strict=True):
        assert float((value - expected).abs().max()) <= 1e-12 * max(1.0, float(expected.abs().max()))
