"""Parameter counts: each attention's own formula, and the totals of the paper's Table 1."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from stripefold.attention import build_attention
from stripefold.attention.eca import kernel_size_of
from stripefold.attention.layers import hidden_width
from tests.attention.cases import CASES, build

WIDTHS = (64, 128, 256)
SITES = 18


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def resnet164_parameters(classes: int = 100) -> int:
    """Bottlenecks 9 n + 2 with n = 18; widths 16, 32, 64, output four times that; BatchNorm after each convolution."""
    total, inputs = 3 * 16 * 9 + 2 * 16, 16
    for width in (16, 32, 64):
        output = 4 * width
        for block in range(SITES):
            total += inputs * width + 2 * width + 9 * width * width + 2 * width + width * output + 2 * output
            if block == 0:
                total += inputs * output + 2 * output
            inputs = output
    return total + inputs * classes + classes


FORMULAS: dict[str, Callable[[int], int]] = {
    "se": lambda c: 2 * c * max(1, c // 16) + max(1, c // 16) + c,
    "se-unbiased": lambda c: 2 * c * (c // 4),
    "ie": lambda c: 2 * c,
    "srm": lambda c: 2 * c + 2 * c,
    "spa": lambda c: 22 * c * (c // 4),
    "eca": kernel_size_of,
    "eca-k5": lambda c: 5,
    "cbam": lambda c: 2 * c * (c // 4) + c // 4 + c,
    "gct": lambda c: 3 * c,
    "fca": lambda c: 2 * c * (c // 4) + c // 4 + c,
    "ge": lambda c: 0,
    "ge-theta": lambda c: 2 * c,
    "ge-theta+": lambda c: 2 * c + 2 * c * (c // 4) + c // 4 + c,
    "ese": lambda c: c * c + c,
    "dia": lambda c: 2 * (5 * c * (c // 4) + c // 4 + 4 * c),
    "scale": lambda c: 0,
}


@pytest.mark.parametrize("case", FORMULAS)
@pytest.mark.parametrize("channels", [8, 64, 256])
def test_parameters_of_one_attention(case: str, channels: int) -> None:
    assert count(build(case, channels)) == FORMULAS[case](channels)


@pytest.mark.parametrize(
    ("name", "millions"), [("se", 1.93), ("ie", 1.74), ("srm", 1.76), ("spa", 3.86), ("cbam", 1.93), ("dia", 1.95)]
)
def test_table_1_of_the_paper(name: str, millions: float) -> None:
    """dia has one module for each stage, the others one for each of a stage's 18 blocks."""
    modules = [build_attention(name, width) for width in WIDTHS]
    sites = 1 if modules[0].chained else SITES
    total = resnet164_parameters() + sites * sum(count(module) for module in modules)
    assert round(total / 1e6, 2) == millions


@pytest.mark.parametrize(("classes", "millions"), [(100, 1.93), (10, 1.90)])
def test_cbam_with_its_spatial_half(classes: int, millions: float) -> None:
    """Without biases, as in its authors' code: the paper's counts for CIFAR100 and for STL10."""
    modules = [build_attention("cbam", width, bias=False, spatial=True) for width in WIDTHS]
    total = resnet164_parameters(classes) + SITES * sum(count(module) for module in modules)
    assert round(total / 1e6, 2) == millions


def test_table_1_of_the_paper_without_attention() -> None:
    assert round(resnet164_parameters() / 1e6, 2) == 1.73


@pytest.mark.parametrize("channels", [1, 2, 7, 24, 100])
def test_no_layer_is_zero_wide(channels: int) -> None:
    for case in CASES:
        assert all(parameter.numel() > 0 for parameter in build(case, channels).parameters())
    assert hidden_width("se", channels, 16) == max(1, round(channels / 16))


def test_kernel_size_is_odd_and_grows() -> None:
    sizes = [kernel_size_of(channels) for channels in range(1, 4097)]
    assert all(size % 2 == 1 for size in sizes)
    assert sizes == sorted(sizes)
    assert sizes[255] == 5  # 256 channels: log2 is 8, (8 + 1) / 2 truncates to 4, and 4 is even
