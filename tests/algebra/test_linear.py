"""The scaled linear map without a kept copy: values, gradients, second gradients, dtypes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stripefold.algebra.linear import scaled_linear


def tensors(*lead: int, bias: bool = True, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(*lead, 5), (4, 5), (4,) if bias else None, (4,)]
    made = [None if s is None else torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return [t if t is None else t.requires_grad_() for t in made]


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, v: Tensor) -> Tensor:
    return F.linear(x, (weight * v[:, None]).to(weight.dtype), None if bias is None else (bias * v).to(bias.dtype))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_every_gradient(lead: tuple[int, ...], bias: bool) -> None:
    inputs = tensors(*lead, bias=bias)
    wanted = [t for t in inputs if t is not None]
    results = []
    for function in (plain, scaled_linear):
        output = function(*inputs)  # type: ignore[arg-type]
        weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).reshape(output.shape)
        results.append([output.detach(), *torch.autograd.grad((weights * output**2).sum(), wanted)])
    for expected, found in zip(*results, strict=True):
        assert float((expected - found).abs().max()) <= 1e-12 * float(expected.abs().max())
    assert float((results[0][0] - F.linear(*inputs[:3]).detach()).abs().max()) > 1e-3  # the control: the scale matters


def test_differentiable_twice() -> None:
    inputs = tensors(3)
    assert torch.autograd.gradcheck(scaled_linear, inputs)
    assert torch.autograd.gradgradcheck(scaled_linear, inputs)


def test_under_torch_func() -> None:
    x, weight, bias, v = tensors(3)
    expected = torch.func.vmap(plain, in_dims=(0, None, None, None))(x, weight, bias, v)
    found = torch.func.vmap(scaled_linear, in_dims=(0, None, None, None))(x, weight, bias, v)
    assert torch.allclose(expected, found, rtol=1e-12, atol=0)


def test_a_frozen_weight_gets_no_gradient() -> None:
    x, weight, bias, v = tensors(3)
    frozen = weight.detach()
    scaled_linear(x, frozen, bias, v).sum().backward()
    assert frozen.grad is None
    assert v.grad is not None


def test_autocast_and_mixed_dtypes() -> None:
    x, weight, bias, v = tensors(3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = plain(x, weight, bias, v), scaled_linear(x, weight, bias, v)
    assert found.dtype == torch.bfloat16
    assert torch.equal(expected, found)
    gradients = [torch.autograd.grad(output.float().sum(), (x, weight, bias, v)) for output in (expected, found)]
    for wanted, got in zip(*gradients, strict=True):
        assert got.dtype == torch.float32
        assert float((wanted - got).abs().max()) <= 2**-6 * float(wanted.abs().max())
    half = [t.detach().bfloat16() for t in (x, weight, bias)]
    assert scaled_linear(*half, v).dtype == torch.bfloat16
