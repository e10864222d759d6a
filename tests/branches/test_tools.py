"""What users do with a model in training, done with blocks in it: copies, files, precisions, tracers, processes."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

import stripefold as sf
from stripefold.branches.block import BranchBlock
from tests.branches.blocks import KINDS, SMALL
from tests.lifecycle import EXACT, TinyNet, error, images, prepared, step_, tiny

FEW = ["dbb", "doconv", "mobileone"]  # every sort of branch is in one of them


def with_blocks(kind: str, dtype: torch.dtype = torch.float64, model: nn.Module | None = None) -> Any:
    model = sf.branch(tiny(dtype) if model is None else model, kind, options=SMALL.get(kind, {}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".depthwise", ".difference")):  # zeros at the start
                parameter += 0.1 * torch.randn_like(parameter)
    return prepared(model, images(8, dtype)).eval()


@pytest.mark.parametrize("kind", FEW)
def test_copies_compute_and_fold_the_same(kind: str) -> None:
    model, x = with_blocks(kind), images()
    expected = model(x).detach()
    again = TinyNetWith(kind)
    again.load_state_dict(model.state_dict())
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(buffer, weights_only=False),
        "state dict": again.eval(),
        "average": torch.optim.swa_utils.AveragedModel(model).module,
    }
    memory = {parameter.data_ptr() for parameter in model.parameters()}
    for name, other in copies.items():
        assert error(other(x).detach(), expected) == 0, name
        assert not memory & {parameter.data_ptr() for parameter in other.parameters()}, name
        plain = sf.fold(other, example=x, check=False)
        assert error(plain(x).detach(), expected) < EXACT, name
        assert list(plain.state_dict()) == list(tiny().state_dict()), name
    with torch.no_grad():
        next(model.stem.parameters()).add_(0.1)
    assert error(model(x).detach(), expected) > 1e-3
    assert error(copies["deepcopy"](x).detach(), expected) == 0


def TinyNetWith(kind: str) -> nn.Module:
    return sf.branch(tiny(seed=7), kind, options=SMALL.get(kind, {}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_everything_and_the_fold_follows(kind: str) -> None:
    model, x = with_blocks(kind).train(), images(8)
    before = sf.fold(model, example=images())
    step_(model, x, steps=2, lr=0.01)  # asserts that every parameter has a finite gradient
    after = sf.fold(model, example=images())
    assert error(after(images()).detach(), before(images()).detach()) > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", FEW)
def test_narrow_precisions_keep_their_dtype(kind: str, dtype: torch.dtype) -> None:
    model = with_blocks(kind, torch.float32).to(dtype)
    x = images(4, dtype)
    plain = sf.fold(model, example=x, check=False)
    assert {p.dtype for p in plain.parameters()} == {dtype}
    assert sf.verify(model, plain, x).passed


@pytest.mark.parametrize("kind", FEW)
def test_autocast_computes_what_the_fold_computes(kind: str) -> None:
    model, x = with_blocks(kind, torch.float32), images(4, torch.float32)
    plain = sf.fold(model, example=x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output = model(x)
    assert error(output, plain(x).detach()) < 0.05
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images(8, torch.float32)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("kind", FEW)
def test_symbolic_and_jit_traces_agree(kind: str) -> None:
    model, x = with_blocks(kind), images()
    expected = model(x).detach()
    graph = fx.symbolic_trace(model)
    assert error(graph(x).detach(), expected) < EXACT
    assert error(torch.jit.trace(model, x)(x).detach(), expected) < EXACT
    with torch.no_grad():
        next(model.stem.parameters()).add_(0.1)
    assert error(graph(x).detach(), expected) > 1e-3  # the graph uses the model's own parameters


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dbb", "doconv"])
def test_compile_and_export_agree(kind: str) -> None:
    model, x = with_blocks(kind), images()
    torch._dynamo.reset()
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    found, expected = run(x), model(x)
    assert error(found.detach(), expected.detach()) < EXACT
    gradients = _gradients(model, found)
    for name, gradient in _gradients(model, expected).items():
        assert torch.allclose(gradients[name], gradient, rtol=1e-9, atol=1e-12), name
    exported = torch.export.export(model, (x,)).module()
    assert error(exported(x).detach(), expected.detach()) < EXACT
    assert sf.verify(model, sf.fold(run, example=x), x).passed


def _gradients(model: nn.Module, output: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(output.square().sum(), list(named.values()))
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("kind", FEW)
def test_two_forwards_before_one_backward(kind: str) -> None:
    """The border of a sequence reads running statistics, which the second forward changes in place."""
    model = with_blocks(kind).train()
    (model(images(8)).square().mean() + model(images(8, seed=2)).square().mean()).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("kind", FEW)
def test_gradient_checkpointing_gives_the_same_gradients(kind: str) -> None:
    model, x = with_blocks(kind), images(8)
    model(x).square().mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    checkpoint(model, x, use_reentrant=False).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-9, atol=1e-12), name


@pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")
@pytest.mark.parametrize("kind", FEW)
def test_ddp_finds_every_parameter_used(kind: str) -> None:
    """One process: DDP complains at the second step about any parameter that the first did not reach."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(with_blocks(kind).train())
        step_(model, images(8), steps=2, lr=0.01)
        plain = sf.fold(model, example=images())
    finally:
        dist.destroy_process_group()
    assert sf.verify(model.module, plain, images()).passed


def test_synchronised_batchnorms_fold() -> None:
    model, x = with_blocks("dbb"), images()
    expected = model(x).detach()
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(synchronised.stem.branches["main"].bn) is nn.SyncBatchNorm
    plain = sf.fold(synchronised, example=x, check=False)
    assert error(sf.fold(model, example=x)(x).detach(), expected) < EXACT
    assert torch.equal(plain.stem.weight, sf.fold(model, example=x).stem.weight)


def test_a_folded_model_needs_nothing_of_ours() -> None:
    plain = sf.fold(with_blocks("dbb"), example=images())
    for module in plain.modules():
        assert not type(module).__module__.startswith("stripefold")
        for value in vars(module).values():
            assert not type(value).__module__.startswith("stripefold")


def test_param_groups_and_counts() -> None:
    """Blocks are backbone: ``param_groups`` has every parameter once."""
    model = with_blocks("dbb")
    groups = sf.param_groups(model, weight_decay=1e-4)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert sum(isinstance(m, BranchBlock) for m in model.modules()) == 5
    assert "dbb: 3, 8, kernel_size=(3, 3)" in repr(model)
    assert isinstance(model, TinyNet)
