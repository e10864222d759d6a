"""Scales of positions in the shapes that take them up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stripefold.algebra.positions import flattened_scale, map_scale, pooling_kernel


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.mark.parametrize("scale", [(12,), (5, 12)], ids=["one for all", "per channel"])
def test_flattened(scale: tuple[int, ...]) -> None:
    s, x = random(*scale), random(2, 5, 3, 4)
    scaled = x * map_scale(s, (3, 4))
    assert torch.equal(x.flatten(1) * flattened_scale(s, 5, 1), scaled.flatten(1))
    last = x.movedim(1, -1).flatten(1) * flattened_scale(s, 5, -1)
    assert torch.equal(last, scaled.movedim(1, -1).flatten(1))
    assert not torch.equal(flattened_scale(s, 5, 1), flattened_scale(s, 5, -1))


@pytest.mark.parametrize("scale", [(12,), (5, 12)], ids=["one for all", "per channel"])
def test_a_mean_of_a_scaled_map_is_a_depthwise_convolution(scale: tuple[int, ...]) -> None:
    s, x = random(*scale), random(2, 5, 3, 4)
    kernel = pooling_kernel(s, 5, (3, 4))
    assert kernel.is_contiguous()  # one number for many channels could not be trained, or loaded into
    pooled = F.conv2d(x, kernel, groups=5).flatten(1)
    assert torch.allclose(pooled, (x * map_scale(s, (3, 4))).mean((2, 3)), rtol=0, atol=1e-15)
    assert not torch.allclose(pooled, x.mean((2, 3)))
