"""What every test of the lifecycle needs: a small network that can be judged, a step, a fold with its control."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from stripefold.asr.gate import StaticGate

EXACT = 1e-10
IMAGE_DEPENDENCE = 1e-2


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class TinyNet(nn.Module):
    """A residual network of two blocks for 6x6 images; declares its input, so nothing has to be given."""

    def __init__(self, channels: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.input_size = (3, 6, 6)
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(Block(channels), Block(channels))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


SITES = ["blocks.0.bn2", "blocks.1.bn2"]


def tiny(dtype: torch.dtype = torch.float64, seed: int = 0) -> TinyNet:
    """A TinyNet whose every number is random, its statistics fitting and then jittered (design, section 9)."""
    torch.manual_seed(seed)
    return prepared(TinyNet().to(dtype), images(8, dtype))


def images(batch: int = 4, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def prepared(model: nn.Module, x: Tensor) -> Any:
    """Random affine parts; BatchNorm statistics calibrated on one batch, then jittered. Flags stay as they are."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    flags = [(m, m.training) for m in model.modules()]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
            norm.momentum = 1.0
        model.train()(x)
        for norm in norms:
            norm.momentum = 0.1
            norm.running_mean += 0.1 * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
    for module, training in flags:
        module.training = training
    return model


def scatter_(model: nn.Module, seed: int = 3) -> nn.Module:
    """Move every gate far from its start, its hidden units alive, so that a lost gate is a large error."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".gates." in f".{name}":
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += (0.5 * noise).to(parameter)
    for module in model.modules():
        if isinstance(module, StaticGate):
            module.attention.reactivate_dead_units_(module.psi.detach())
    return model


def attached(attention: str = "se", dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    """A prepared TinyNet with gates away from their start, in training mode."""
    return scatter_(sf.attach(tiny(dtype), attention, **options)).train()


def step_(model: nn.Module, x: Tensor, steps: int = 1, lr: float = 0.1) -> nn.Module:
    """Optimiser steps on all parameters with the mean of squares as loss; every gradient must be there and finite."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).float().square().mean().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
        optimizer.step()
    return model


def error(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value of ``b``."""
    return float((a.detach().double() - b.detach().double()).abs().max() / b.detach().double().abs().max())


def assert_folds(
    model: nn.Module, x: Any, *, keys: list[str] | None = None, dependence: float = IMAGE_DEPENDENCE
) -> nn.Module:
    """Fold, verify by the numeric policy, see that the images matter and that the control (detached) differs."""
    plain = sf.fold(model, example=x, check=False)
    report = sf.verify(model, plain, x)
    with torch.no_grad():
        output = copy.deepcopy(plain).eval()(x)
    spread = float((output - output.mean(0, keepdim=True)).abs().max() / output.abs().max())
    # Half precision allows a few per cent: there the control and the comparison bit by bit are what can fail.
    narrow = report.dtype in ("float16", "bfloat16")
    assert spread > max(dependence, (1 if narrow else 100) * report.tolerance)
    assert not any(".gates." in f".{name}" for name, _ in plain.named_modules())
    if keys is not None:
        assert list(plain.state_dict()) == keys
    with pytest.raises(sf.errors.VerifyError, match="NOT equivalent"):
        sf.verify(model, sf.detach(model), x)
    return plain


def snapshot(model: nn.Module) -> list[object]:
    """Everything a refused call must leave alone: module ids, keys, bytes, flags, hooks."""
    state: list[object] = []
    for name, module in model.named_modules(remove_duplicate=False):
        hooks = [
            (key, id(value), tuple(value))
            for key, value in vars(module).items()
            if key.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
        ]
        attributes = sorted(key for key in vars(module))
        state.append((name, id(module), type(module), module.training, hooks, attributes, list(module._modules)))
        for kind in (module._parameters, module._buffers):
            state += [(key, id(tensor), _content(tensor)) for key, tensor in kind.items()]
    return state


def _content(tensor: Tensor | None) -> object:
    if tensor is None or isinstance(tensor, nn.parameter.UninitializedTensorMixin) or tensor.is_meta:
        return None
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    data = tensor.detach().contiguous().flatten()
    return (tensor.dtype, tensor.requires_grad, tuple(tensor.shape), data.view(torch.uint8).numpy().tobytes())


def assert_refused(model: nn.Module, call: Callable[[], Any], error: type[Exception], match: str) -> None:
    """The call raises this, in these words, and the model is bit for bit what it was."""
    before = snapshot(model)
    with pytest.raises(error, match=match):
        call()
    assert snapshot(model) == before
