"""The static form goes through every tracer, copies and pickles; the dynamic form is traced too."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, fx, nn

from stripefold.attention import build_attention
from tests.attention.cases import CASES, DYNAMIC_CASES, build, randomise, static_scale


class Gate(nn.Module):
    """A gate reduced to what has to be traced."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.attention = build(case, 8)
        randomise(self.attention)
        self.psi = nn.Parameter(torch.linspace(-1, 1, self.size).reshape(self.attention.descriptor_shape))

    @property
    def size(self) -> int:
        return torch.Size(self.attention.descriptor_shape).numel()

    def forward(self, x: Tensor) -> Tensor:
        return x * static_scale(self.attention, self.psi.float())


class Chain(nn.Module):
    """Two sites of one dia module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = build_attention("dia", 8)
        randomise(self.attention)
        self.psi = nn.Parameter(torch.linspace(-1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        first, state = self.attention.excite_static(self.psi)
        second, _ = self.attention.excite_static(self.psi, state)  # type: ignore[call-arg]
        return x * first * second


def by_fx(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    del x
    return fx.symbolic_trace(module)


def by_jit(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.jit.trace(module, x)  # type: ignore[no-any-return, no-untyped-call]


def by_compile(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    del x
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend="aot_eager")


def by_export(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.export.export(module, (x,)).module()


TRACERS = {"fx": by_fx, "jit": by_jit, "compile": by_compile, "export": by_export}


FAST = ("se", "chain")
"""the cases that are compiled and exported in the fast suite too"""


def tracings() -> Iterator[object]:
    for case in (*CASES, "chain"):
        for tracer in TRACERS:
            slow = tracer in ("compile", "export") and case not in FAST
            yield pytest.param(case, tracer, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("case", "tracer"), list(tracings()))
def test_static_form_is_traced(case: str, tracer: str) -> None:
    module = Chain() if case == "chain" else Gate(case)
    x = torch.randn(3, 8)
    traced = TRACERS[tracer](module, x)
    assert torch.allclose(traced(x), module(x), atol=1e-6)
    with torch.no_grad():
        module.psi.add_(0.5)
    if tracer != "export":  # an exported program may hold its own parameters
        assert torch.allclose(traced(x), module(x), atol=1e-6)


@pytest.mark.parametrize("tracer", ["fx", pytest.param("compile", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ["se", "cbam", "eca", "srm", "dia"])
def test_gradients_pass_the_tracer(case: str, tracer: str) -> None:
    module, x = Gate(case), torch.randn(3, 8)
    module.attention.reactivate_dead_units_(module.psi)
    expected = torch.autograd.grad(module(x).square().sum(), module.psi)[0]
    found = torch.autograd.grad(TRACERS[tracer](module, x)(x).square().sum(), module.psi)[0]
    assert expected.abs().max() > 0
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tracer", ["fx", pytest.param("export", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", DYNAMIC_CASES)
def test_dynamic_form_is_traced(case: str, tracer: str) -> None:
    module = build(case, 8).eval()
    randomise(module)
    x = torch.randn(2, 8, 6, 6)
    assert torch.allclose(TRACERS[tracer](module, x)(x), module(x), atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_copies_and_pickles(case: str) -> None:
    module, x = Gate(case), torch.randn(3, 8)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    assert torch.equal(loaded(x), module(x))
