"""Compilers and tracers: the attached model gives the same values and gradients through each, and then folds."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, fx, nn

import stripefold as sf
from tests.lifecycle import assert_folds, attached, error, images, scatter_, step_, tiny

KEYS = list(tiny().state_dict())
WHERES = ["residual", "affine"]


def many(where: str) -> nn.Module:
    """The sites of "affine" include convolutions and a linear layer, whose cheaper side is a question."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the gate on .* has no effect", UserWarning)
        return attached(where=where)


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(output.square().sum(), list(named.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}


def assert_same(run, model: nn.Module) -> None:
    """Values and every gradient, in eval mode; and the control: gates matter to the traced program."""
    model.eval()
    x = images()
    expected, found = model(x), run(x)
    assert error(found, expected) < 1e-12
    reference, traced = gradients(model, expected), gradients(model, found)
    assert reference.keys() == traced.keys() == dict(model.named_parameters()).keys()
    for name, gradient in reference.items():
        assert float((traced[name] - gradient).abs().max()) <= 1e-11 * float(gradient.abs().max()), name
    with torch.no_grad():
        before = run(x)
        for parameter in model.get_submodule("blocks.0.bn2.gates").parameters():
            parameter.mul_(1.2)
        assert error(run(x), before) > 1e-4
        assert error(run(x), model(x)) < 1e-12


@pytest.mark.skipif(
    not hasattr(torch.nn.modules.module, "_has_any_global_hook"), reason="an older torch, which does not complain"
)
def test_a_trace_leaves_no_global_hook_behind() -> None:
    """torch's own handle forgets one, and torch.compile complains about it for the rest of the process."""
    sf.attach(tiny())
    assert not torch.nn.modules.module._has_any_global_hook()


@pytest.mark.parametrize("where", WHERES)
def test_compile_whole_model(where: str) -> None:
    torch._dynamo.reset()
    model = many(where)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    step_(compiled, images(), steps=2)
    assert_same(compiled, model)
    plain = assert_folds(model, images(), keys=KEYS)
    assert error(sf.fold(compiled, check=False)(images()), plain(images())) == 0


def test_model_compile_in_place() -> None:
    torch._dynamo.reset()
    model = attached()
    model.compile(backend="aot_eager", fullgraph=True)
    step_(model, images(), steps=2)
    plain = assert_folds(model, images(), keys=KEYS)
    sf.fold_(model)
    assert error(model.eval()(images()), plain.eval()(images())) < 1e-12  # no stale code runs


def test_attaching_forgets_what_was_compiled() -> None:
    torch._dynamo.reset()
    model = tiny().eval()
    model.compile(backend="aot_eager")
    before = model(images())
    sf.attach_(model)
    scatter_(model)
    assert error(model(images()), before) > 1e-3
    assert error(sf.detach_(model)(images()), before) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles")  # said by torch 2.6
def test_inductor() -> None:
    torch._dynamo.reset()
    model = attached(dtype=torch.float32)
    compiled = torch.compile(model, fullgraph=True)
    step_(compiled, images(dtype=torch.float32), steps=2)
    assert error(compiled(images(dtype=torch.float32)), model(images(dtype=torch.float32))) < 1e-4
    assert_folds(model, images(dtype=torch.float32), keys=KEYS)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("where", WHERES)
def test_export_with_a_dynamic_batch(where: str, strict: bool) -> None:
    model = step_(many(where), images()).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},), strict=strict).module()
    for size in (1, 7):
        assert error(program(images(size)), model(images(size))) < 1e-12
    plain = assert_folds(model, images(), keys=KEYS)
    folded = torch.export.export(plain, (images(),), dynamic_shapes=({0: batch},), strict=strict).module()
    assert error(folded(images(7)), model(images(7))) < 1e-10


@pytest.mark.parametrize("where", WHERES)
@pytest.mark.parametrize("attention", ["se", "dia", "spa"])
def test_symbolic_trace(attention: str, where: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the gate on .* has no effect", UserWarning)
        model = step_(attached(attention, where=where), images()).eval()
    graph = fx.symbolic_trace(model)
    assert_same(graph, model)
    assert any("psi" in str(node.target) for node in graph.graph.nodes)  # reaches psi, not a constant
    assert_folds(model, images(), keys=KEYS)


def test_symbolic_trace_trains_in_training_mode() -> None:
    model = attached()
    graph = fx.symbolic_trace(model)
    other = attached()
    step_(graph, images(), steps=2)
    step_(other, images(), steps=2)
    assert error(graph(images()), other(images())) < 1e-10
    assert error(model.blocks[0].bn2.base.running_mean, other.blocks[0].bn2.base.running_mean) < 1e-10


@pytest.mark.parametrize("where", WHERES)
def test_jit_trace(where: str) -> None:
    model = step_(many(where), images()).eval()
    traced = torch.jit.trace(model, images())
    assert_same(traced, model)
    assert error(traced(images(2)), model(images(2))) < 1e-12
    assert_folds(model, images(), keys=KEYS)


def test_functional_call_reaches_the_gates() -> None:
    model = step_(attached(), images()).eval()
    moved = {k: v + 0.3 * torch.randn(v.shape, dtype=v.dtype) for k, v in model.named_parameters() if ".gates." in k}
    other = scatter_(attached()).eval()
    other.load_state_dict({**model.state_dict(), **moved})
    output = torch.func.functional_call(model, moved, (images(),))
    assert error(output, other(images())) < 1e-12
    assert error(output, model(images())) > 1e-4


def test_vmap_over_an_ensemble() -> None:
    models = [step_(attached(psi="random"), images(seed=k)).eval() for k in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)

    def run(parameters, buffers, x):
        return torch.func.functional_call(models[0], (parameters, buffers), (x,))

    stacked = torch.vmap(run, in_dims=(0, 0, None))(parameters, buffers, images())
    for k, model in enumerate(models):
        assert error(stacked[k], model(images())) < 1e-12
        assert_folds(model, images(), keys=KEYS)
    assert error(stacked[0], stacked[1]) > 1e-4


def test_per_sample_gradients_of_psi() -> None:
    model = attached().eval()
    parameters = {k: v.detach() for k, v in model.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x.unsqueeze(0),)).square().sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images())
    name = "blocks.0.bn2.gates.0.psi"
    (whole,) = torch.autograd.grad(model(images()).square().sum(), model.get_parameter(name))
    assert error(each[name].sum(0), whole) < 1e-10
