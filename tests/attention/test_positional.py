"""The attentions over positions and those that add, against their formulas written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stripefold.attention import build_attention
from stripefold.errors import AttachError
from tests.attention.cases import randomise

EXACT = 1e-12


def seeded(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name: str, channels: int = 6, **options: Any) -> Any:
    attention = build_attention(name, channels, **options).double().eval()
    randomise(attention)
    return attention


def correlate(summary: Tensor, kernel: Tensor) -> Tensor:
    """(2, H, W) with (2, k, k), zero-padded, element by element."""
    size, reach = kernel.shape[-1], kernel.shape[-1] // 2
    _, height, width = summary.shape
    padded = torch.zeros(2, height + 2 * reach, width + 2 * reach, dtype=summary.dtype)
    padded[:, reach : reach + height, reach : reach + width] = summary
    rows = [
        torch.stack([(padded[:, i : i + size, j : j + size] * kernel).sum() for j in range(width)])
        for i in range(height)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("grid", [(5, 4), (1, 1), (9,)])
@pytest.mark.parametrize("size", [7, 3, 1])
@torch.no_grad()
def test_static_spatial(grid: tuple[int, ...], size: int) -> None:
    attention = made("spatial", grid=grid, kernel_size=size)
    height, width = grid if len(grid) == 2 else (1, *grid)
    assert attention.descriptor_shape == (2, height, width)
    psi = seeded(2, height, width)
    conv, norm = attention.weighting.conv.weight[0], attention.weighting.norm
    expected = torch.sigmoid(correlate(psi, conv) * norm.weight + norm.bias).flatten()
    assert float((attention.excite_static(psi) - expected).abs().max()) <= EXACT
    assert attention.positions == height * width


@pytest.mark.parametrize("axis", [1, -1])
@torch.no_grad()
def test_dynamic_spatial(axis: int) -> None:
    attention = made("spatial", axis=axis, kernel_size=3, gate="tanh")
    x = seeded(3, 6, 5, 4)
    norm = attention.weighting.norm
    mixed = torch.stack(
        [correlate(torch.stack((one.amax(0), one.mean(0))), attention.weighting.conv.weight[0]) for one in x]
    )
    mixed = (mixed - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    expected = x * torch.tanh(mixed).unsqueeze(1)
    given = x if axis == 1 else x.movedim(1, -1)
    found = attention(given)
    assert float((found - (expected if axis == 1 else expected.movedim(1, -1))).abs().max()) <= EXACT
    assert torch.equal(
        attention.excite(attention.squeeze(given)), attention.weighting.weights(attention.squeeze(given))
    )


@pytest.mark.parametrize(
    ("options", "shape", "flat"), [({}, (3, 4), (12,)), ({"per_channel": True}, (6, 3, 4), (6, 12))]
)
def test_position_is_psi(options: dict[str, Any], shape: tuple[int, ...], flat: tuple[int, ...]) -> None:
    attention = made("position", grid=(3, 4), **options)
    assert attention.descriptor_shape == shape
    psi = seeded(*shape)
    assert torch.equal(attention.excite_static(psi), psi.reshape(flat))
    assert str(attention) == "Position(6, grid=3x4)"


@torch.no_grad()
def test_global_context() -> None:
    attention = made("gc", 16, reduction=2)
    d = seeded(3, 16)

    def transform(one: Tensor) -> Tensor:
        hidden = attention.reduce.weight @ one + attention.reduce.bias
        spread = ((hidden - hidden.mean()) ** 2).mean()
        hidden = (hidden - hidden.mean()) / (spread + 1e-5).sqrt() * attention.norm.weight + attention.norm.bias
        return attention.expand.weight @ hidden.clamp(min=0) + attention.expand.bias

    expected = torch.stack([transform(one) for one in d])
    assert float((attention.excite(d) - expected).abs().max()) <= EXACT
    assert float((attention.excite_static(d[0]) - expected[0]).abs().max()) <= EXACT
    for x, given in ((seeded(3, 16, 5, 4), 1), (seeded(3, 16, 7), -1)):
        other = build_attention("gc", 16, axis=given, reduction=2).double()
        other.load_state_dict(attention.state_dict())
        flat = x.flatten(2)
        logits = torch.einsum("c,ncp->np", attention.context.weight[0], flat) + attention.context.bias
        weights = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
        context = torch.einsum("ncp,np->nc", flat, weights)
        added = torch.stack([transform(one) for one in context])
        result = x + added.reshape(3, 16, *(1,) * (x.dim() - 2))
        found = other(x if given == 1 else x.movedim(1, -1))
        assert float((found - (result if given == 1 else result.movedim(1, -1))).abs().max()) <= EXACT


def test_global_context_starts_at_nothing_and_leaves_it() -> None:
    attention = build_attention("gc", 8).double()
    psi = torch.full((8,), 0.1, dtype=torch.float64, requires_grad=True)
    assert torch.equal(attention.excite_static(psi), torch.zeros(8, dtype=torch.float64))
    optimizer = torch.optim.SGD([psi, *attention.parameters()], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        (attention.excite_static(psi) - 1).square().sum().backward()
        optimizer.step()
    moved = [name for name, p in attention.named_parameters() if p.grad is not None and bool((p.grad != 0).any())]
    assert {name.partition(".")[0] for name in moved} == {"reduce", "norm", "expand"}
    assert bool((psi.grad != 0).any())


def test_a_static_gate_gives_up_what_reads_the_map() -> None:
    attention = build_attention("gc", 8)
    attention.drop_squeeze_parameters_()
    assert not any("context" in name for name, _ in attention.named_parameters())
    with pytest.raises(AttachError, match="a static gate reads no map"):
        attention(torch.zeros(2, 8, 3, 3))


def test_the_controls_have_no_dynamic_form() -> None:
    for name in ("shift", "position"):
        with pytest.raises(AttachError, match=f"{name!r} has no dynamic form"):
            build_attention(name, 4)(torch.zeros(2, 4, 3, 3))
    assert torch.equal(build_attention("shift", 4).excite_static(torch.arange(4.0)), torch.arange(4.0))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("spatial", {"grid": (3, 4, 5)}, r"takes maps of H x W, not \(3, 4, 5\): use 'position'"),
        ("spatial", {"kernel_size": 4}, "kernel_size must be a positive odd integer, got 4"),
        ("spatial", {"kernel_size": "7"}, "kernel_size must be a positive odd integer, got '7'"),
        ("spatial", {"gate": "sigmoidal"}, "no gate 'sigmoidal'"),
        ("position", {"grid": (3, 0)}, r"grid must be one to three positive sizes such as \(7, 7\), got \(3, 0\)"),
        ("position", {"grid": 7}, "got 7"),
        ("position", {"grid": (2, 2, 2, 2)}, r"got \(2, 2, 2, 2\)"),
        ("position", {"grid": (2.0, 2)}, r"got \(2.0, 2\)"),
    ],
)
def test_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AttachError, match=message):
        build_attention(name, 4, **options)


def test_a_learned_map_needs_its_size() -> None:
    with pytest.raises(AttachError, match="'spatial': a learned map needs its resolution"):
        build_attention("spatial", 4).descriptor_shape  # noqa: B018
    assert build_attention("spatial", 4)(torch.zeros(2, 4, 3, 3)).shape == (2, 4, 3, 3)  # the dynamic form needs none


def test_spatial_needs_planes() -> None:
    with pytest.raises(AttachError, match=r"'spatial': the spatial half needs two-dimensional maps, .*Use another"):
        build_attention("spatial", 4)(torch.zeros(2, 4, 9))
