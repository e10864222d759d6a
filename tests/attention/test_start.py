"""At the start every gate can learn: live units, gradients, and the saddles that are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from stripefold.attention import ChannelAttention, attention_names, build_attention
from stripefold.attention.perceptron import Perceptron
from stripefold.errors import AttachError
from tests.attention.cases import CASES, build, static_scale

WIDTHS = [1, 2, 3, 8, 16, 32, 64]
SEEDS = range(24)
FIRST_MOVERS = {"ie": "weight", "srm": "weight", "gct": "gamma"}
"""attentions whose v does not depend on psi until this parameter has moved, by the paper's own start"""
UNTOUCHED = {"from_state.reduce.weight"}
"""meets the zero state at the first site of a chain"""


def started(case: str, channels: int, seed: int) -> tuple[ChannelAttention, Tensor]:
    torch.manual_seed(seed)
    attention = build(case, channels)
    psi = torch.full(attention.descriptor_shape, attention.default_psi)
    attention.check_start(psi)
    attention.reactivate_dead_units_(psi)
    return attention, psi.requires_grad_()


def descend(attention: ChannelAttention, psi: Tensor) -> None:
    """One step of gradient descent on a loss in which every channel counts differently."""
    v = static_scale(attention, psi)
    (v * torch.linspace(1, 2, len(v))).sum().backward()
    with torch.no_grad():
        for tensor in [psi, *attention.parameters()]:
            if tensor.grad is not None:
                tensor -= 0.1 * tensor.grad


@pytest.mark.parametrize("case", CASES)
def test_every_gate_learns_from_the_start(case: str) -> None:
    mover = FIRST_MOVERS.get(CASES[case][0])
    for channels in WIDTHS:
        for seed in SEEDS:
            attention, psi = started(case, channels, seed)
            if mover is not None:
                descend(attention, psi)
                assert attention.get_parameter(mover).grad.abs().min() > 0  # type: ignore[union-attr]
                assert psi.grad.abs().max() == 0  # type: ignore[union-attr]
            descend(attention, psi)
            assert psi.grad is not None
            assert psi.grad.isfinite().all()
            assert psi.grad.abs().max() > 0, (channels, seed)
            for name, parameter in attention.named_parameters():
                if name not in UNTOUCHED:
                    assert parameter.grad is not None
                    assert parameter.grad.abs().max() > 0, (channels, seed, name)


@pytest.mark.parametrize("case", ["se", "se-r2", "se-unbiased", "spa", "cbam", "fca", "ge-theta+", "dia"])
def test_without_revival_gates_are_born_dead(case: str) -> None:
    """The control: what reactivate_dead_units_ is for."""
    dead = 0
    for seed in SEEDS:
        torch.manual_seed(seed)
        attention = build(case, 2)
        psi = torch.full(attention.descriptor_shape, 0.1)
        dead += attention.dead_units(psi) > 0
        before = attention.dead_units(psi)
        attention.reactivate_dead_units_(psi)
        assert attention.dead_units(psi) <= before
    assert dead > len(SEEDS) // 5


@pytest.mark.parametrize("hidden", [1, 2, 4, 16, 64])
def test_revival_reaches_its_target_and_no_further(hidden: int) -> None:
    target, touched = max(1, hidden // 4), 0
    for seed in range(200):
        torch.manual_seed(seed)
        perceptron = Perceptron(8, hidden, 8)
        before = copy.deepcopy(perceptron.state_dict())
        psi = torch.full((8,), 0.1)
        live = hidden - perceptron.dead_units(psi)
        perceptron.reactivate_dead_units_(psi)
        assert hidden - perceptron.dead_units(psi) == max(live, target)
        changed = {name for name, value in perceptron.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == (set() if live >= target else {"reduce.weight", "reduce.bias"})
        for name, value in perceptron.state_dict().items():
            assert torch.equal(value.abs(), before[name].abs())
        touched += live < target
    assert touched > 0 or hidden > 16


def test_revival_counts_every_point_of_cbam() -> None:
    """A unit that lives at the maximum alone lives."""
    attention = build_attention("cbam", 4, reduction=4)
    with torch.no_grad():
        attention.get_parameter("mlp.reduce.weight").fill_(1.0)
        attention.get_parameter("mlp.reduce.bias").zero_()
    psi = torch.stack((torch.full((4,), -1.0), torch.full((4,), 1.0)), -1)
    assert attention.dead_units(psi) == 0
    assert attention.dead_units(-psi.abs()) == 1


def test_dead_units_are_counted_in_low_precision_too() -> None:
    attention = build_attention("se", 64).to(torch.bfloat16)
    psi = torch.full((64,), 0.1, dtype=torch.bfloat16)
    assert attention.dead_units(psi) == build_like(attention).dead_units(psi.float())
    attention.reactivate_dead_units_(psi)
    assert attention.get_parameter("mlp.reduce.weight").dtype == torch.bfloat16


def build_like(attention: ChannelAttention) -> ChannelAttention:
    return copy.deepcopy(attention).float()


@pytest.mark.parametrize("case", CASES)
def test_start_on_the_meta_device(case: str) -> None:
    with torch.device("meta"):
        attention = build(case)
        psi = torch.full(attention.descriptor_shape, 0.0)
    attention.check_start(psi)
    attention.reactivate_dead_units_(psi)
    assert attention.dead_units(psi) == 0


@pytest.mark.parametrize("name", ["ie", "srm", "gct"])
def test_zero_weight_times_zero_psi_is_refused(name: str) -> None:
    attention = build_attention(name, 4)
    psi = torch.full(attention.descriptor_shape, 0.1)
    attention.check_start(psi)
    psi[2] = 0
    with pytest.raises(AttachError, match=f"'{name}' cannot start at psi = 0: the weight .* this is a saddle"):
        attention.check_start(psi)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.fill_(0.5)
    attention.check_start(psi)


@pytest.mark.parametrize("case", ["spa", "se-unbiased"])
def test_zero_psi_without_biases_is_refused(case: str) -> None:
    attention = build(case)
    psi = torch.zeros(attention.descriptor_shape)
    with pytest.raises(AttachError, match="cannot start at psi = 0: without biases the first layer"):
        attention.check_start(psi)
    attention.check_start(psi + 0.1)
    build(case, bias=True).check_start(psi)


@pytest.mark.parametrize("case", ["ie", "srm", "gct", "spa", "se-unbiased"])
def test_the_refused_start_is_a_saddle_indeed(case: str) -> None:
    attention = build(case)
    psi = torch.zeros(attention.descriptor_shape, requires_grad=True)
    for _ in range(3):
        descend(attention, psi)
        assert torch.equal(psi, torch.zeros_like(psi))


@pytest.mark.parametrize(
    "case", ["se", "cbam", "fca", "ge", "ge-theta", "ge-theta+", "ese", "eca", "dia", "spa-biased"]
)
def test_zero_psi_is_left_by_all_others(case: str) -> None:
    attention = build(case)
    psi = torch.zeros(attention.descriptor_shape)
    attention.check_start(psi)
    attention.reactivate_dead_units_(psi)
    psi.requires_grad_()
    descend(attention, psi)
    assert psi.abs().max() > 0


def test_cbam_with_spatial_half_has_no_static_form() -> None:
    with pytest.raises(AttachError, match="spatial=True has no static form"):
        build_attention("cbam", 4, spatial=True).check_start(torch.full((4, 2), 0.1))


def test_starting_scales() -> None:
    """What each gives at psi = 0.1 before training: ie by its bias of -1, gct and scale exactly 1."""
    torch.manual_seed(0)
    start = {
        name: static_scale(attention, torch.full(attention.descriptor_shape, attention.default_psi))
        for name in attention_names(acts="channels")
        for attention in [build_attention(name, 64)]
    }
    assert torch.equal(start["scale"], torch.ones(64))
    assert torch.equal(start["shift"], torch.zeros(64))
    assert torch.equal(start["gc"], torch.zeros(64))
    assert torch.equal(start["gct"], torch.ones(64))
    assert torch.allclose(start["ie"], torch.sigmoid(torch.tensor(-1.0)))
    assert torch.equal(start["srm"], torch.full((64,), 0.5))
    for name in ("se", "fca", "ese", "spa", "cbam"):
        assert (start[name].mean() - 0.5).abs() < 0.05, name
    assert (start["dia"].mean() - 0.25).abs() < 0.05
    assert start["eca"][1:-1].std() < 1e-6  # uniform psi: uniform but for the ends
    assert start["eca"].std() > 1e-6
