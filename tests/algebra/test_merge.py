"""Merging affine maps, against running one after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stripefold.algebra.merge import batchnorm_scale_shift, shift_bias


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("affine", [True, False])
def test_batchnorm_is_a_scale_and_a_shift(affine: bool) -> None:
    x, mean, variance = noise(4, 3, 2), noise(3, seed=1), noise(3, seed=2).abs()
    gamma, beta = (noise(3, seed=3), noise(3, seed=4)) if affine else (None, None)
    scale, shift = batchnorm_scale_shift(mean, variance, 1e-3, gamma, beta)
    expected = F.batch_norm(x, mean, variance, gamma, beta, eps=1e-3)
    assert torch.allclose(x * scale.view(-1, 1) + shift.view(-1, 1), expected, rtol=1e-12)
    assert not torch.allclose(x * scale.view(-1, 1), expected, rtol=1e-3)


def test_batchnorm_scale_shift_is_float64_for_half_statistics() -> None:
    scale, shift = batchnorm_scale_shift(torch.zeros(2).half(), torch.ones(2).half(), 1e-5, None, None)
    assert scale.dtype == shift.dtype == torch.float64


@pytest.mark.parametrize("bias", [True, False])
def test_shift_bias_of_a_convolution_behind_a_batchnorm(bias: bool) -> None:
    x, weight = noise(2, 3, 6), noise(4, 3, 3, seed=1)
    own = noise(4, seed=2) if bias else None
    scale, shift = noise(4, seed=3), noise(4, seed=4)
    expected = F.conv1d(x, weight, own) * scale.view(-1, 1) + shift.view(-1, 1)
    value = F.conv1d(x, weight * scale.view(-1, 1, 1), shift_bias(own, scale, shift))
    assert torch.allclose(value, expected, rtol=1e-12)
