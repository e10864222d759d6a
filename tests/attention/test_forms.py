"""Both forms of every attention against its formula, on any axis, rank and dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stripefold.attention import attention_names, build_attention
from stripefold.attention.pooling import as_plane, deviation_pool, mean_pool, positions, scale_channels
from stripefold.errors import AttachError
from tests.attention.cases import CASES, DYNAMIC_CASES, build, randomise, static_scale
from tests.attention.formulas import EXCITE, EXCITE_STATIC, SQUEEZE, excite_srm_training, parameters_of

EXACT = 1e-12


def worst(found: Tensor, expected: object) -> float:
    reference = torch.as_tensor(expected, dtype=torch.float64).detach()
    assert found.shape == reference.shape
    return float((found.detach() - reference.detach()).abs().max() / reference.abs().max().clamp_min(1))


def seeded(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_attention_has_a_case() -> None:
    assert {name for name, _ in CASES.values()} == set(attention_names(acts="channels", how="multiply"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("channels", [1, 3, 16, 40])
def test_static_form_is_the_formula(case: str, channels: int) -> None:
    attention = build(case, channels).double()
    randomise(attention)
    psi = seeded(*attention.descriptor_shape)
    expected = EXCITE_STATIC[CASES[case][0]](parameters_of(attention), psi.numpy())
    v = static_scale(attention, psi)
    assert v.shape == (channels,)
    assert worst(v, expected) <= EXACT


@pytest.mark.parametrize("case", DYNAMIC_CASES)
@pytest.mark.parametrize("size", [(8, 8), (9, 5), (2, 3)])
def test_dynamic_form_is_the_formula(case: str, size: tuple[int, int]) -> None:
    attention = build(case, 20).double().eval()
    randomise(attention)
    x = seeded(3, 20, *size)
    name = CASES[case][0]
    descriptor = SQUEEZE[name](x.numpy())
    assert worst(attention.squeeze(x), descriptor) <= EXACT
    v = torch.as_tensor(EXCITE[name](parameters_of(attention), descriptor))
    assert worst(attention(x), x * v[:, :, None, None]) <= EXACT


def test_srm_normalises_over_the_batch_while_training() -> None:
    attention = build("srm", 5).double()
    randomise(attention)
    descriptor = seeded(4, 5, 2)
    expected = excite_srm_training(parameters_of(attention), descriptor.numpy())
    before = attention.get_buffer("norm.running_mean").clone()
    assert worst(attention.excite(descriptor), expected) <= EXACT
    assert not torch.equal(before, attention.get_buffer("norm.running_mean"))


def test_srm_static_form_leaves_the_statistics_alone() -> None:
    attention = build("srm", 5)
    randomise(attention)
    before = {name: value.clone() for name, value in attention.named_buffers()}
    attention.excite_static(torch.rand(5, 2))
    assert all(torch.equal(before[name], value) for name, value in attention.named_buffers())


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_matters_to_the_static_form(case: str) -> None:
    """The control: a wrong parameter is seen (dia's state layer at its second site)."""
    attention = build(case).double()
    randomise(attention)
    psi = seeded(*attention.descriptor_shape)
    attention.reactivate_dead_units_(psi)

    def v() -> Tensor:
        if not attention.chained:
            return attention.excite_static(psi)
        return attention.excite_static(psi, attention.excite_static(psi)[1])[0]  # type: ignore[call-arg]

    reference = v()
    for parameter in attention.parameters():
        with torch.no_grad():
            parameter.add_(0.5)
            assert (v() - reference).abs().max() > 1e-6
            parameter.sub_(0.5)


@pytest.mark.parametrize("case", DYNAMIC_CASES)
def test_channel_axis_is_selectable(case: str) -> None:
    first, last = build(case).double().eval(), build(case, axis=-1).double().eval()
    randomise(first)
    last.load_state_dict(first.state_dict())
    for shape in [(2, 16), (2, 16, 5), (2, 16, 6, 4), (2, 16, 3, 4, 4)]:
        x = seeded(*shape)
        y = first(x)
        assert y.shape == x.shape
        assert worst(last(x.movedim(1, -1)), y.movedim(1, -1)) <= EXACT
    cube = seeded(2, 16, 16, 16)
    assert (last(cube) - first(cube)).abs().max() > 1e-4


@pytest.mark.parametrize("case", CASES)
def test_leading_axes_are_a_batch(case: str) -> None:
    attention = build(case).double().eval()
    randomise(attention)
    descriptor = seeded(2, 3, *attention.descriptor_shape)
    v = attention.excite(descriptor)
    assert v.shape == (2, 3, 16)
    assert worst(v[1, 2], attention.excite(descriptor[1, 2]).detach()) <= EXACT


@pytest.mark.parametrize("case", CASES)
def test_arithmetic_follows_the_input(case: str) -> None:
    attention = build(case)
    randomise(attention)
    attention.to(torch.bfloat16)
    precise = build(case).double()
    precise.load_state_dict(attention.state_dict())
    psi = seeded(*attention.descriptor_shape).float()
    expected = static_scale(precise, psi.double())
    for dtype, tolerance in [(torch.float32, 1e-6), (torch.float64, EXACT), (torch.bfloat16, 0.05)]:
        v = static_scale(attention, psi.to(dtype))
        assert v.dtype == dtype
        if dtype != torch.bfloat16:
            assert worst(v, expected) <= tolerance
        assert attention.eval().excite(psi.to(dtype)[None]).dtype == dtype


@pytest.mark.parametrize("case", DYNAMIC_CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_layout_stays(case: str, layout: torch.memory_format) -> None:
    x = torch.randn(2, 16, 4, 4).contiguous(memory_format=layout)
    assert build(case)(x).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("case", DYNAMIC_CASES)
def test_dynamic_gradients_reach_input_and_parameters(case: str) -> None:
    attention = build(case)
    randomise(attention)
    x = seeded(4, 16, 8, 8).float().requires_grad_()
    attention.reactivate_dead_units_(attention.squeeze(x)[0])
    attention(x).square().sum().backward()
    assert x.grad is not None
    for name, parameter in attention.named_parameters():
        if name != "from_state.reduce.weight":  # meets the zero state
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ("sigmoid", lambda z: 1 / (1 + torch.exp(-z))),
        ("hard_sigmoid", lambda z: ((z + 3).clamp(0, 6)) / 6),
        ("tanh", lambda z: (torch.exp(z) - torch.exp(-z)) / (torch.exp(z) + torch.exp(-z))),
        ("one_plus_tanh", lambda z: 1 + (torch.exp(z) - torch.exp(-z)) / (torch.exp(z) + torch.exp(-z))),
        ("identity", lambda z: z),
    ],
)
def test_gate_is_an_option(gate: str, expected: object) -> None:
    attention = build_attention("ie", 9, gate=gate).double()
    randomise(attention)
    psi = seeded(9)
    z = attention.get_parameter("weight") * psi + attention.get_parameter("bias")
    assert worst(attention.excite_static(psi), expected(z).detach()) <= EXACT  # type: ignore[operator]


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES.values()} - {"dia", "scale"}))
def test_every_excitation_takes_a_gate(name: str) -> None:
    psi = torch.full(build_attention(name, 8).descriptor_shape, 0.1)
    plain, tanh = build_attention(name, 8), build_attention(name, 8, gate="tanh")
    randomise(plain)
    tanh.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain.excite_static(psi), tanh.excite_static(psi))


def test_cbam_spatial_half() -> None:
    attention = build_attention("cbam", 6, spatial=True).double().eval()
    plain = build_attention("cbam", 6).double()
    randomise(attention)
    plain.load_state_dict({name: value for name, value in attention.state_dict().items() if "spatial" not in name})
    p = {name.removeprefix("spatial."): torch.as_tensor(value) for name, value in parameters_of(attention).items()}
    x = seeded(2, 6, 9, 8)
    scaled = plain(x)
    summary = torch.stack((scaled.max(1).values, scaled.mean(1)), 1)
    padded = torch.nn.functional.pad(summary, (3, 3, 3, 3))
    mixed = torch.einsum("nchwij,cij->nhw", padded.unfold(2, 7, 1).unfold(3, 7, 1), p["conv.weight"][0])
    mixed = (mixed - p["norm.running_mean"]) / torch.sqrt(p["norm.running_var"] + 1e-5)
    weight = 1 / (1 + torch.exp(-(p["norm.weight"] * mixed + p["norm.bias"])))
    assert worst(attention(x), (scaled * weight[:, None]).detach()) <= EXACT
    last = build_attention("cbam", 6, axis=-1, spatial=True).double().eval()
    last.load_state_dict(attention.state_dict())
    assert worst(last(x.movedim(1, -1)), attention(x).movedim(1, -1).detach()) <= EXACT


def test_cbam_spatial_half_needs_planes() -> None:
    with pytest.raises(AttachError, match=r"two-dimensional maps, got a tensor of shape \(2, 6, 9\)"):
        build_attention("cbam", 6, spatial=True)(torch.randn(2, 6, 9))


def test_fca_grid_scales_the_frequencies() -> None:
    coarse, fine = build_attention("fca", 16), build_attention("fca", 16, grid=14)
    x = torch.zeros(1, 16, 14, 14, dtype=torch.float64)
    wave = torch.cos(torch.pi * 2 * (torch.arange(14, dtype=torch.float64) + 0.5) / 14)
    x[0, 1] = wave  # horizontal frequency 2 of 14 is 1 of 7 scaled by two
    assert fine.squeeze(x)[0, 1] == pytest.approx(float((wave**2).sum()) * 2**0.5)
    assert fine.squeeze(x)[0, 1].abs() > 1 > coarse.squeeze(x)[0, 1].abs()


def test_fca_best_frequency_is_the_mean() -> None:
    x = seeded(2, 8, 7, 7)
    assert worst(build_attention("fca", 8, frequencies=1).squeeze(x), 7 * x.mean((2, 3))) <= EXACT


def test_scale_has_no_dynamic_form() -> None:
    attention = build_attention("scale", 4)
    assert not attention.dynamic
    assert attention.default_psi == 1.0
    with pytest.raises(AttachError, match="'scale' has no dynamic form"):
        attention(torch.randn(2, 4, 3, 3))


def test_one_position_has_no_deviation() -> None:
    x = torch.randn(2, 4, 1, 1)
    assert torch.allclose(deviation_pool(x, 1, 1e-5), torch.full((2, 4), 1e-5).sqrt())


def test_positions_makes_no_copy() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout)
        assert positions(x, 1).data_ptr() == x.data_ptr()
        assert scale_channels(x, torch.ones(2, 3), 1).shape == x.shape
    assert torch.allclose(mean_pool(torch.ones(2, 4, 5, 3), -1), torch.ones(2, 3))


def test_as_plane_of_any_rank() -> None:
    x = seeded(2, 3, 4, 5, 6)
    assert as_plane(x[:, :, 0, 0, 0], 1).shape == (2, 3, 1, 1)
    assert as_plane(x[:, :, 0, 0], 1).shape == (2, 3, 6, 1)
    assert torch.equal(as_plane(x[:, :, 0], 1), x[:, :, 0])
    assert torch.allclose(as_plane(x, 1), x.mean(2))
    assert torch.equal(as_plane(x.movedim(1, -1), -1), as_plane(x, 1))
