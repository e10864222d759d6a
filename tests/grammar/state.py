"""Everything of a user's that a call must leave alone: read before, compared afterwards."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.grammar.network import Loaded
from tests.grammar.support import Tap

_PARTS = ("_parameters", "_buffers", "_modules")


class State:
    """A picture of a network, of the helper objects behind it, and of what is global.

    What a network holds itself has to be there bit for bit and object for object. What functions hold (closures,
    default arguments, globals, class attributes), a copy of the network shares: an ordinary run may have added to it,
    but no tensor of another device or dtype than an ordinary run leaves there.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.own = dict(own_state(loaded.net))
        self.flags = _flags()
        self.random = _random_state()
        self.shared = {kind for _, kind in _shared(loaded)}

    def differences(self, loaded: Loaded, ordinary: set[Any], *, draws: bool) -> list[str]:
        """What is no longer as it was, in words.

        Args:
            loaded: The network, after the call.
            ordinary: What tensors an ordinary run leaves in functions and globals.
            draws: Whether the call may draw random numbers.
        """
        found = changes(self.own, dict(own_state(loaded.net)))
        found += [f"{name} is switched" for name, value in _flags().items() if value != self.flags[name]]
        if not draws and self.random != _random_state():
            found.append("random state moved on")
        strange = [(path, kind) for path, kind in _shared(loaded) if kind not in self.shared | ordinary]
        return found + [f"{path} holds a tensor {kind}" for path, kind in strange]


def ordinary_run(loaded: Loaded) -> set[Any]:
    """Dtypes and devices of the tensors that a run of every call leaves in functions, globals and classes."""
    for call in loaded.calls:
        call.run(loaded.net)
    return {kind for _, kind in _shared(loaded)}


def _flags() -> dict[str, Any]:
    return {
        "the gradient mode": torch.is_grad_enabled(),
        "the fast path of attention": torch.backends.mha.get_fastpath_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "inference mode": torch.is_inference_mode_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of ``own_state`` is no longer as it was."""
    found = [f"{path} is gone" for path in before if path not in now]
    found += [f"{path} is new" for path in now if path not in before]
    return found + [f"{path} changed" for path in before if path in now and not _same(before[path], now[path])]


def _random_state() -> Any:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())


def _same(before: tuple[Any, Any], now: tuple[Any, Any]) -> bool:
    return before[0] is now[0] and before[1] == now[1]


def own_state(net: nn.Module) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Path -> (object, content) of everything that the network holds without a function in between."""
    seen: set[int] = set()
    for name, module in net.named_modules(remove_duplicate=False):
        yield name or "(root)", (module, (type(module), module.training))
        if id(module) in seen or isinstance(module, torch.jit.ScriptModule):
            continue
        seen.add(id(module))
        for key, value in vars(module).items():
            path = f"{name}.{key}".lstrip(".")
            if key in _PARTS:
                yield f"{path} (keys)", (value, tuple(value))
                for inner, part in value.items():
                    if isinstance(part, Tensor):
                        yield f"{path}.{inner}", (part, _content(part))
            else:
                yield from _walk(path, value, set())


def _walk(path: str, value: Any, seen: set[int]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The value and what containers and plain objects in it hold."""
    if isinstance(value, Tensor):
        yield path, (value, _content(value))
        return
    if isinstance(value, (int, float, str, bool, type(None), bytes)):
        yield path, (None, value)
        return
    if id(value) in seen or isinstance(value, Tap):
        return
    seen.add(id(value))
    yield path, (value, type(value))
    if isinstance(value, nn.Module):
        for key, tensor in (*value.named_parameters(), *value.named_buffers()):
            yield f"{path}.{key}", (tensor, _content(tensor))
        return
    if not isinstance(value, (type, types.FunctionType, types.ModuleType, types.MethodType, functools.partial)):
        for key, item in _items(value):
            yield from _walk(f"{path}[{key}]", item, seen)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple, set, frozenset)) or type(value).__name__ == "deque":
        return list(enumerate(value))
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(value, name)]
    return [*vars(value).items()] if hasattr(value, "__dict__") else [(name, getattr(value, name)) for name in slots]


def _content(tensor: Tensor) -> Any:
    if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
        return "uninitialized"
    about = (type(tensor), tensor.dtype, tensor.device.type, tuple(tensor.shape), tensor.requires_grad)
    if tensor.is_meta:
        return about
    plain = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    return (*about, plain.contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def _shared(loaded: Loaded) -> Iterator[tuple[str, Any]]:
    """Path and (dtype, device) of every tensor in the module's globals, its classes, functions and hooks."""
    seen: set[int] = {id(loaded.net)}
    for name, value in list(vars(loaded.module).items()):
        own = getattr(value, "__module__", None) == loaded.module.__name__
        if own or not (isinstance(value, (type, types.FunctionType, types.ModuleType)) or name.startswith("__")):
            yield from _reached(name, value, seen, loaded.module.__name__)
    for name, module in loaded.net.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            for key, value in vars(module).items():
                if key not in _PARTS:
                    yield from _reached(f"{name}.{key}", value, seen, loaded.module.__name__)


def _reached(path: str, value: Any, seen: set[int], home: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        yield path, (value.dtype, value.device.type)
        return
    if id(value) in seen or isinstance(value, (int, float, str, bytes, torch.dtype, Tap, nn.Module)):
        return
    seen.add(id(value))
    for key, item in _held(value, home):
        yield from _reached(f"{path}.{key}", item, seen, home)


def _held(value: Any, home: str) -> list[tuple[Any, Any]]:
    if isinstance(value, types.FunctionType):
        cells = [(f"cell {i}", cell.cell_contents) for i, cell in enumerate(value.__closure__ or ()) if _filled(cell)]
        defaults = list(enumerate(value.__defaults__ or ()))
        return [*cells, *defaults]
    if isinstance(value, type):
        return list(vars(value).items()) if value.__module__ == home else []
    if isinstance(value, types.MethodType):
        return [("self", value.__self__)]
    if isinstance(value, functools.partial):
        return [("func", value.func), *enumerate(value.args), *value.keywords.items()]
    if isinstance(value, types.ModuleType):
        return []
    return list(_items(value)) if type(value).__module__ in (home, "builtins", "collections", "types") else []


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
