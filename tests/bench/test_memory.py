"""The count of live bytes against sizes that are known."""

from __future__ import annotations

import torch
from torch import nn

from stripefold_lab.bench.memory import LiveStorages, peak_bytes

KIBI = 256  # float32 values in one KiB


def test_temporaries_are_freed() -> None:
    def run() -> None:
        for _ in range(5):
            torch.ones(KIBI)

    assert peak_bytes(run) == 1024


def test_views_and_in_place_results_count_once() -> None:
    def run() -> torch.Tensor:
        x = torch.ones(KIBI)
        return x.add_(1).view(16, 16).t()

    assert peak_bytes(run) == 1024


def test_held_tensors_count_from_the_start() -> None:
    weight = torch.ones(KIBI)
    assert peak_bytes(lambda: weight * 2, held=[weight, weight.view(-1)]) == 2048


def test_tensors_saved_for_backward_count() -> None:
    x = torch.ones(KIBI, requires_grad=True)

    def chain(depth: int) -> int:
        def run() -> None:
            y = x
            for _ in range(depth):
                y = y.sin()
            y.sum().backward()

        return peak_bytes(run)

    # Each sine saves its input for the way back: one KiB more per step of depth.
    assert chain(10) - chain(5) == 5 * 1024


def test_the_product_on_the_map_costs_a_map() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(8)
    x, scale = torch.randn(4, 8, 16, 16), torch.rand(8, requires_grad=True)
    on_map = peak_bytes(lambda: (layer(x) * scale.view(1, -1, 1, 1)).sum().backward())
    on_weight = peak_bytes(
        lambda: (
            nn.functional.batch_norm(
                x, layer.running_mean, layer.running_var, layer.weight * scale, layer.bias * scale, training=True
            )
            .sum()
            .backward()
        )
    )
    assert on_map >= on_weight + x.numel() * 4


def test_everything_is_let_go() -> None:
    with LiveStorages() as meter:
        x = torch.ones(KIBI)
        assert meter.live == 1024
        del x
        assert meter.live == 0
