"""The chain of dia: one module along the depth, in both forms."""

from __future__ import annotations

from typing import Any

import torch

from stripefold.attention import DenseImplicitAttention, build_attention
from tests.attention.cases import randomise
from tests.attention.formulas import parameters_of, squeeze_mean, step_dia
from tests.attention.test_forms import EXACT, seeded, worst


def chain(channels: int = 6) -> DenseImplicitAttention:
    attention = build_attention("dia", channels)
    assert isinstance(attention, DenseImplicitAttention)
    randomise(attention)
    return attention.double()


def test_static_chain_is_the_formula() -> None:
    attention = chain()
    p, h, c = parameters_of(attention), torch.zeros(6).double().numpy(), torch.zeros(6).double().numpy()
    state = None
    for depth in range(4):
        psi = seeded(6, seed=depth)
        h, c = step_dia(p, psi.numpy(), h, c)
        v, state = attention.excite_static(psi, state)
        assert worst(v, h) <= EXACT
        assert worst(state[0], h) <= EXACT
        assert worst(state[1], c) <= EXACT


def test_dynamic_chain_is_the_formula() -> None:
    attention = chain()
    p: Any = parameters_of(attention)
    h = c = torch.zeros(2, 6).double().numpy()
    state = None
    for depth in range(3):
        x = seeded(2, 6, 4, 5, seed=depth)
        h, c = step_dia(p, squeeze_mean(x.numpy()), h, c)
        y, state = attention.forward_chained(x, state)
        assert worst(y, x * torch.as_tensor(h)[:, :, None, None]) <= EXACT


def test_one_site_alone_starts_from_zero() -> None:
    attention = chain()
    x = seeded(2, 6, 4)
    assert torch.equal(attention(x), attention.forward_chained(x)[0])
    zero = attention.initial_state(seeded(2, 6))
    assert all(torch.equal(each, torch.zeros(2, 6).double()) for each in zero)
    assert torch.equal(attention.step(seeded(2, 6), zero)[0], attention.excite(seeded(2, 6)))


def test_depth_matters_and_gradients_go_back_along_it() -> None:
    attention = chain()
    first, second = seeded(6).requires_grad_(), seeded(6, seed=2).requires_grad_()
    v, state = attention.excite_static(first)
    w, _ = attention.excite_static(second, state)
    assert (w - attention.excite_static(second)[0]).abs().max() > 1e-3
    w.sum().backward()
    assert first.grad is not None
    assert first.grad.abs().max() > 0
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert v.shape == w.shape == (6,)
