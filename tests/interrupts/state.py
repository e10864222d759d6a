"""Everything that must be as it was: the model object for object and bit for bit, random state, torch's switches."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _python_dispatch

from tests.interrupts.models import Meter

_CONTAINERS = (dict, list, tuple, set, deque)


def pictured(model: nn.Module) -> dict[str, Any]:
    """A model as nested plain values: identities of modules, tensors and hooks, modes, and the bits of every tensor."""
    return {"model": _pictured(model, set()), "order": [name for name, _ in model.named_parameters()]}


def _pictured(value: Any, seen: set[int]) -> Any:
    if isinstance(value, Tensor):
        bits = value.detach().clone().contiguous().view(-1).numpy().tobytes()
        return ("tensor", id(value), tuple(value.shape), value.dtype, value.requires_grad, value.data_ptr(), bits)
    if isinstance(value, (nn.Module, Meter)):
        if id(value) in seen:
            return ("again", id(value))
        seen.add(id(value))
        return (object.__getattribute__(value, "__class__"), id(value), _pictured(vars(value), seen))
    if isinstance(value, dict):
        return ("dict", id(value), [(key, _pictured(each, seen)) for key, each in value.items()])
    if isinstance(value, _CONTAINERS):
        return (type(value), id(value), [_pictured(each, seen) for each in value])
    if isinstance(value, (int, float, str, bool, type(None))):
        return value
    return id(value)


def switches() -> dict[str, Any]:
    """What torch keeps for the process or the thread, and no call may leave otherwise."""
    from torch.nn.modules import module

    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "threads": torch.get_num_threads(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "modes noted": (
            _python_dispatch._is_in_torch_dispatch_mode,
            _python_dispatch._is_in_non_infra_torch_dispatch_mode,
        ),
        "global hooks": (
            len(module._global_forward_hooks),
            len(module._global_forward_pre_hooks),
            len(module._global_backward_hooks),
            len(module._global_module_registration_hooks),
            len(module._global_parameter_registration_hooks),
            len(module._global_buffer_registration_hooks),
        ),
    }


def randomness() -> tuple[Any, ...]:
    """The three random states of the process."""
    kind, keys, *rest = np.random.get_state()
    return (random.getstate(), (kind, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes())
