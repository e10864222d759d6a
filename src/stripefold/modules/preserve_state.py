"""Run a copy that is worked on, and put back what runs of it changed: buffers, flags, attributes, random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CONTAINERS = (dict, list, set)


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; everything as it was afterwards.

    A model in evaluation mode stays as it stands: a norm that its user left in training mode runs as such. Otherwise
    the flags are set directly: a user's ``train()`` may do more than that (merge weights, say). Attributes and the
    containers they hold are restored too, because models cache what depends on device or size.
    """
    modules = _python_modules(model)
    compiled = [(module, module.training) for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
    saved = [(vars(module), _Attributes(vars(module))) for module in modules]
    in_use = not model.training
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        for module in modules:
            vars(module)["training"] = in_use and module.training
            # A compiled call would hide what hooks put in its place.
            vars(module)["_compiled_call_impl"] = None
        for script, _ in compiled:
            script.train(in_use and script.training)
        with torch.random.fork_rng(devices=_cuda_devices(model)), torch.no_grad():
            yield
    finally:
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


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {tensor.device for tensor in model.parameters()}
    return sorted({device.index or 0 for device in devices if device.type == "cuda"})


def copy_buffers(model: nn.Module) -> None:
    """Let a real run write to copies of the buffers; only inside ``preserve_state``, which undoes it.

    Buffers that were shared stay shared.
    """
    copies: dict[int, Tensor] = {}
    for module in _python_modules(model):
        for name, tensor in module._buffers.items():
            if tensor is not None:
                if id(tensor) not in copies:
                    copies[id(tensor)] = tensor.clone()
                module._buffers[name] = copies[id(tensor)]
