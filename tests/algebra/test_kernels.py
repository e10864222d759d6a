"""The transforms of re-parameterization, against running the branches; zero padding borders included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stripefold.algebra.kernels import (
    add_branches,
    average_kernel,
    compose_depthwise,
    compose_pointwise,
    concatenate_branches,
    embed_kernel,
    identity_kernel,
    merge_norm,
)
from stripefold.algebra.merge import batchnorm_scale_shift

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(value: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool(torch.allclose(value, expected, rtol=1e-11, atol=1e-11))


@pytest.mark.parametrize("biased", [True, False])
def test_a_convolution_and_its_norm_are_one(biased: bool) -> None:
    x, kernel = noise(2, 4, 6, 6), noise(6, 2, 3, 3, seed=1)
    bias = noise(6, seed=2) if biased else None
    mean, variance, gamma, beta = noise(6, seed=3), noise(6, seed=4).abs(), noise(6, seed=5), noise(6, seed=6)
    expected = F.batch_norm(F.conv2d(x, kernel, bias, padding=1, groups=2), mean, variance, gamma, beta, eps=0.1)
    merged = merge_norm(kernel, bias, *batchnorm_scale_shift(mean, variance, 0.1, gamma, beta))
    assert same(F.conv2d(x, *merged, padding=1, groups=2), expected)
    wrong = merge_norm(kernel, bias, *batchnorm_scale_shift(mean, variance, 1e-5, gamma, beta))
    assert not torch.allclose(F.conv2d(x, *wrong, padding=1, groups=2), expected, rtol=1e-3)


def test_added_branches_add_their_outputs() -> None:
    x, first, second, bias = noise(2, 3, 5), noise(4, 3, 3, seed=1), noise(4, 3, 3, seed=2), noise(4, seed=3)
    merged = add_branches([(first, None), (second, bias), (first, bias)])
    assert same(F.conv1d(x, *merged), 2 * F.conv1d(x, first) + F.conv1d(x, second) + 2 * bias.view(-1, 1))
    assert add_branches([(first, None)])[1] is None
    assert add_branches([(first.half(), bias.half())])[0].dtype == torch.float64


@pytest.mark.parametrize("branches", [[], [(noise(4, 3, 3), None), (noise(4, 3, 1), None)]])
def test_branches_of_different_shapes_do_not_add(branches: list) -> None:
    with pytest.raises(ValueError, match="branches that are added need kernels of one shape, got"):
        add_branches(branches)


@PROPERTY
@given(
    groups=st.integers(1, 3), inner=st.integers(1, 3), middle=st.integers(1, 3), outer=st.integers(1, 3),
    biases=st.tuples(st.booleans(), st.booleans()), stride=st.integers(1, 2), dilation=st.integers(1, 2),
)  # fmt: skip
def test_a_pointwise_convolution_composes(
    groups: int, inner: int, middle: int, outer: int, biases: tuple[bool, bool], stride: int, dilation: int
) -> None:
    first = (noise(groups * middle, inner, 1, 1), noise(groups * middle, seed=1) if biases[0] else None)
    second = (noise(groups * outer, middle, 2, 3, seed=2), noise(groups * outer, seed=3) if biases[1] else None)
    x = noise(2, groups * inner, 7, 8, seed=4)
    options = {"stride": stride, "dilation": dilation, "groups": groups}
    between = F.conv2d(x, *first, groups=groups)
    border = torch.zeros(()) if first[1] is None else first[1].view(-1, 1, 1)
    padded = F.pad(between - border, (2, 2, 1, 1)) + border  # padded by what the first makes of zeros
    merged = compose_pointwise(first, second, groups)
    value = F.conv2d(x, *merged, padding=(1, 2), **options)
    assert same(value, F.conv2d(padded, *second, **options))
    assert (merged[1] is None) == (biases == (False, False))
    if biases[0]:  # padding the map by zeros instead is another function, at the border only
        naive = F.conv2d(between, *second, padding=(1, 2), **options)
        assert not torch.allclose(value, naive, rtol=1e-3)


@pytest.mark.parametrize(
    ("first", "second", "groups"), [((4, 3, 3, 3), (2, 4, 3, 3), 1), ((4, 3, 1, 1), (2, 3, 3, 3), 1),
                                    ((4, 3, 1, 1), (4, 4, 3, 3), 2), ((3, 3, 1, 1), (4, 1, 3, 3), 2)]
)  # fmt: skip
def test_what_does_not_compose_is_refused(first: tuple, second: tuple, groups: int) -> None:
    with pytest.raises(ValueError, match=r"does not compose with one of shape .* the first must be 1x1"):
        compose_pointwise((noise(*first), None), (noise(*second), None), groups)


@pytest.mark.parametrize("biased", [True, False])
def test_concatenated_branches_concatenate_their_outputs(biased: bool) -> None:
    x, first, second = noise(2, 3, 6), noise(2, 3, 3, seed=1), noise(4, 3, 3, seed=2)
    bias = noise(4, seed=3) if biased else None
    merged = concatenate_branches([(first, None), (second, bias)])
    assert same(F.conv1d(x, *merged), torch.cat([F.conv1d(x, first), F.conv1d(x, second, bias)], 1))
    assert (merged[1] is None) == (not biased)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_average_pooling_is_a_convolution(groups: int) -> None:
    x = noise(2, 6, 7, 8)
    value = F.conv2d(x, average_kernel(6, groups, (3, 2)), stride=2, padding=1, groups=groups)
    assert same(value, F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), (3, 2), stride=2))


@PROPERTY
@given(taps=st.integers(1, 3), step=st.integers(1, 3), before=st.integers(0, 2), after=st.integers(0, 2))
def test_a_small_or_dilated_kernel_lies_on_a_larger_grid(taps: int, step: int, before: int, after: int) -> None:
    kernel, size = noise(4, 3, taps, 1), (taps - 1) * step + 1 + before + after
    embedded = embed_kernel(kernel, (size, 3), (before, 1), (step, 1))
    assert embedded.shape == (4, 3, size, 3)
    x = noise(2, 3, size + 4, 7, seed=1)
    cropped = x[:, :, before : x.shape[2] - after, 1:-1]
    assert same(F.conv2d(x, embedded), F.conv2d(cropped, kernel, dilation=(step, 1)))


@pytest.mark.parametrize(("offset", "step"), [((2,), (1,)), ((-1,), (1,)), ((0,), (2,))])
def test_a_kernel_beyond_the_grid_is_refused(offset: tuple, step: tuple) -> None:
    with pytest.raises(ValueError, match=r"a kernel of size \(3,\) at .* does not fit into a grid of \(4,\)"):
        embed_kernel(noise(2, 2, 3), (4,), offset, step)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_identity_is_a_kernel(groups: int) -> None:
    x = noise(2, 4, 6, 6)
    assert torch.equal(F.conv2d(x, identity_kernel(4, groups, (3, 5), (1, 2)), padding=(1, 2), groups=groups), x)
    moved = F.conv2d(x, identity_kernel(4, groups, (3, 5), (0, 2)), padding=(1, 2), groups=groups)
    assert torch.equal(moved[:, :, 1:], x[:, :, :-1])


@pytest.mark.parametrize(("groups", "depth"), [(1, 9), (2, 9), (1, 12), (4, 10)])
def test_a_depthwise_factor_is_a_convolution_of_taps(groups: int, depth: int) -> None:
    """DO-Conv: the composed kernel against feature composition, the depthwise factor run on the unfolded map."""
    inner, outer = 4 // groups, 8 // groups
    factor, mixing = noise(groups, inner, 9, depth), noise(groups, outer, inner, depth, seed=1)
    x = noise(2, 4, 6, 6, seed=2)
    patches = F.unfold(x, 3).reshape(2, groups, inner, 9, -1)
    identity = torch.eye(9, depth, dtype=torch.float64)
    features = torch.einsum("gims,ngimp->ngisp", factor + identity, patches)
    expected = torch.einsum("gois,ngisp->ngop", mixing, features).reshape(2, 8, 4, 4)
    kernel = compose_depthwise(factor, mixing, 9).reshape(8, inner, 3, 3)
    assert same(F.conv2d(x, kernel, groups=groups), expected)
    assert torch.equal(compose_depthwise(torch.zeros_like(factor), mixing, 9), mixing[..., :9])
