"""Run a model for its structure and leave no mark on it: parameters, buffers, flags, attributes, random state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CONTAINERS = (dict, list, set)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or fused attention paths inside; everything as it was afterwards.

    The flags are set directly: a user's ``train()`` may do more than that (merge weights, say). Attributes and the
    containers they hold are restored too, because models cache what depends on device or size.
    """
    modules = _python_modules(model)
    compiled = [(module, module.training) for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
    saved = [(vars(module), _Attributes(vars(module))) for module in modules]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        for module in modules:
            vars(module)["training"] = False
            # A compiled call would hide the operations from the recorder.
            vars(module)["_compiled_call_impl"] = None
        for script, _ in compiled:
            script.train(False)
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.random.fork_rng(devices=_cuda_devices(model)), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for attributes, before in saved:
            before.restore(attributes)
        for script, training in reversed(compiled):
            script.train(training)


def _python_modules(model: nn.Module) -> list[nn.Module]:
    """All modules but TorchScript's, whose state is not Python's to change."""
    return [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]


class _Attributes:
    """A module's attributes at one moment, with the content of the containers among them."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self._values = dict(attributes)
        self._contents = [(v, v.copy()) for v in attributes.values() if isinstance(v, _CONTAINERS)]

    def restore(self, attributes: dict[str, Any]) -> None:
        for container, content in self._contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)
        attributes.clear()
        attributes.update(self._values)


def seed_(model: nn.Module) -> None:
    """Start the random numbers that a run of the model may draw from 0; only inside ``undisturbed``, which undoes it.

    Not ``torch.manual_seed``, which seeds every GPU of the machine.
    """
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)
    for device in _cuda_devices(model):
        torch.cuda.default_generators[device].manual_seed(0)


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {tensor.device for tensor in model.parameters()}
    return sorted({device.index or 0 for device in devices if device.type == "cuda"})


def to_meta(model: nn.Module) -> None:
    """Put a weightless stand-in for every parameter and buffer; only inside ``undisturbed``, which undoes it.

    Tensors that were shared stay shared.
    """
    _exchange(model, lambda tensor: torch.empty_like(tensor, device="meta"))


def to_device(model: nn.Module, device: torch.device) -> None:
    """Let a copy on another device stand in for every parameter and buffer; only inside ``undisturbed``.

    Tensors that were shared stay shared.
    """
    _exchange(model, lambda tensor: tensor.detach().to(device))


def _exchange(model: nn.Module, made: Callable[[Tensor], Tensor]) -> None:
    stand_ins: dict[int, Tensor] = {}
    for module in _python_modules(model):
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in holders:
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in stand_ins:
                    new = made(tensor)
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                    stand_ins[id(tensor)] = new
                if tensor is not None:
                    tensors[name] = stand_ins[id(tensor)]


def copy_buffers(model: nn.Module) -> None:
    """Let a real run write to copies of the buffers; only inside ``undisturbed``, which undoes it.

    Buffers that were shared stay shared.
    """
    copies: dict[int, Tensor] = {}
    for module in _python_modules(model):
        for name, tensor in module._buffers.items():
            if tensor is not None:
                if id(tensor) not in copies:
                    copies[id(tensor)] = tensor.clone()
                module._buffers[name] = copies[id(tensor)]
