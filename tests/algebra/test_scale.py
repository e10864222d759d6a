"""The scaling identities on plain tensors, against the maps themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stripefold.algebra.scale import (
    scale_activation,
    scale_dim,
    scale_grouped_input,
    scale_offset_gain,
    scale_transposed_output,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_scale_dim_multiplies_along_one_axis(dim: int) -> None:
    tensor = noise(3, 4, 5)
    v = noise(tensor.shape[dim], seed=1)
    scaled = scale_dim(tensor, v, dim)
    for channel in range(len(v)):
        assert torch.equal(scaled.select(dim, channel), tensor.select(dim, channel) * v[channel])


def test_scale_dim_promotes() -> None:
    assert scale_dim(noise(3).bfloat16(), noise(3), 0).dtype == torch.float64


@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 4, 5), 1), ((2, 3), 1), ((2, 4, 3), -1)])
def test_scale_activation_keeps_shape_dtype_and_strides(shape: tuple[int, ...], axis: int) -> None:
    x, v = noise(*shape).float(), noise(3, seed=1)
    scaled = scale_activation(x, v, axis)
    assert scaled.dtype == torch.float32
    view = [1] * len(shape)
    view[axis] = 3
    assert torch.equal(scaled, (x.double() * v.view(view)).float())


small = st.integers(1, 4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(groups=small, inner=small, outer=small)
def test_grouped_input(groups: int, inner: int, outer: int) -> None:
    weight, x, v = noise(groups * outer, inner, 3), noise(2, groups * inner, 6, seed=1), noise(groups * inner, seed=2)
    expected = F.conv1d(x * v.view(-1, 1), weight, groups=groups)
    value = F.conv1d(x, scale_grouped_input(weight, v, groups), groups=groups)
    assert torch.allclose(value, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(groups=small, inner=small, outer=small)
def test_transposed_output(groups: int, inner: int, outer: int) -> None:
    weight, x, v = noise(groups * inner, outer, 3), noise(2, groups * inner, 6, seed=1), noise(groups * outer, seed=2)
    expected = F.conv_transpose1d(x, weight, groups=groups) * v.view(-1, 1)
    value = F.conv_transpose1d(x, scale_transposed_output(weight, v, groups), groups=groups)
    assert torch.allclose(value, expected, rtol=1e-12, atol=1e-12)


def test_offset_gain_scales_one_plus_the_gain() -> None:
    gain, v = noise(5), noise(5, seed=1)
    assert torch.allclose(1 + scale_offset_gain(gain, v), v * (1 + gain), rtol=1e-14)
