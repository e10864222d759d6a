"""Weight ranges before and after folding, and why int8 per channel does not mind a folded scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import ExportError
from stripefold.export import compare_ranges
from stripefold.export.ranges import COLUMNS, weight_range
from tests.lifecycle import SITES, attached, images, scatter_, tiny


def test_the_numbers_of_one_weight() -> None:
    # Channel ranges 1, 2, 127: median 2. One scale is 1, so 0.4 rounds to 0; per channel all but it are exact.
    weight = torch.tensor([[1.0, 0.4], [2.0, 0.0], [127.0, 0.0]], dtype=torch.float64)
    found = weight_range(weight)
    assert found.channels == 3
    assert found.spread == pytest.approx(63.5)
    size = (1 + 0.16 + 4 + 127**2) ** 0.5
    assert found.tensor_error == pytest.approx(0.4 / size)
    steps = 0.4 * 127
    assert found.channel_error == pytest.approx(abs(round(steps) - steps) / 127 / size)


def test_zeros_and_dead_channels() -> None:
    assert weight_range(torch.zeros(4, 3)).tensor_error == 0.0
    assert weight_range(torch.tensor([[0.0], [0.0], [1.0]])).spread == float("inf")


def test_a_gated_layer_counts_without_its_gate() -> None:
    model = tiny()
    gated = scatter_(sf.attach(model, "se", where=["stem", "head"]))
    plain = sf.fold(gated)
    table = compare_ranges(gated, plain)
    assert list(table.layers) == ["stem", *(f"blocks.{i}.conv{k}" for i in (0, 1) for k in (1, 2)), "head"]
    assert {name: pair[0] for name, pair in table.layers.items()} == {
        name: pair[0] for name, pair in compare_ranges(model, model).layers.items()
    }
    for name, (before, after) in table.layers.items():
        assert (before.spread != after.spread) == (name in ("stem", "head")), name
        # A factor per channel leaves the rounding of each channel alone, so only its weight in the mean moves.
        assert after.channel_error == pytest.approx(before.channel_error, rel=0.5)
    assert len(table.rows()[0]) == len(COLUMNS)
    assert "blocks.0.conv1" in str(table)


def test_a_wide_gate_costs_under_one_scale_and_nothing_per_channel() -> None:
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(8, 64, 3))
    after = nn.Sequential(nn.Conv2d(8, 64, 3))
    scale = torch.logspace(0, -3, 64)[:, None, None, None]
    with torch.no_grad():
        after[0].weight.copy_(before[0].weight * scale)
    (narrow, wide), *_ = compare_ranges(before, after).layers.values()
    assert wide.spread > 10 * narrow.spread
    assert wide.tensor_error > 2 * narrow.tensor_error
    assert wide.channel_error < 1.5 * narrow.channel_error
    name, growth = compare_ranges(before, after).worst()
    assert name == "0"
    assert growth == pytest.approx(wide.tensor_error / narrow.tensor_error)


def test_transposed_convolutions_by_output_channel() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[2:, 1] = 1.0  # second group, second of its three outputs: channel 4
        layer.weight[:2, 0] = 2.0  # channel 0
    found = weight_range(torch.tensor([[2.0], [0.0], [0.0], [0.0], [1.0], [0.0]]))
    (before, _), *_ = compare_ranges(nn.Sequential(layer), nn.Sequential(layer)).layers.values()
    assert before.channels == 6
    assert before.spread == found.spread


def test_nothing_in_common() -> None:
    with pytest.raises(ExportError, match="Sequential and Linear share no convolution or linear layer"):
        compare_ranges(nn.Sequential(nn.ReLU()), nn.Linear(2, 2))


def fake_quantised(weight: Tensor) -> Tensor:
    scale = weight.detach().flatten(1).abs().amax(1) / 127
    zero = torch.zeros(len(weight), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def test_folding_without_fuse_keeps_batchnorm_for_quantisation_aware_training() -> None:
    """Train with int8 weights and live BatchNorms after folding, then fuse: the grid that was trained is the file's."""

    class FakeQuantised(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return fake_quantised(weight)

    model = attached(dtype=torch.float32)
    plain = sf.fold(model)  # no gates, every BatchNorm there
    assert all(isinstance(plain.get_submodule(site), nn.BatchNorm2d) for site in SITES)
    assert not any("gates" in name for name, _ in plain.named_modules())
    convolutions = [module for module in plain.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        nn.utils.parametrize.register_parametrization(convolution, "weight", FakeQuantised())
    before = plain.get_submodule(SITES[0]).running_mean.clone()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    x = images(8, torch.float32)
    losses = []
    for _ in range(5):
        loss = (plain.train()(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not torch.equal(plain.get_submodule(SITES[0]).running_mean, before)
    for convolution in convolutions:
        nn.utils.parametrize.remove_parametrizations(convolution, "weight")  # the rounded weights stay
    trained = plain.eval()
    fused = sf.fold(trained, fuse=True, example=x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    for name in ("blocks.0.conv1", "blocks.1.conv2"):
        weight = fused.get_submodule(name).weight.detach()
        assert float((fake_quantised(weight) - weight).abs().max()) <= 1e-6 * float(weight.abs().max())
        one_scale = weight.abs().max() / 127
        coarse = (weight / one_scale).round() * one_scale
        assert float((coarse - weight).abs().max()) > 1e-3 * float(weight.abs().max())  # the control
