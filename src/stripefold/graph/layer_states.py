"""Whether a layer still is, when it is called, what the model holds: its class, its settings, its tensors.

What a fold writes into a layer of the model is lost where the code around the layer, or a hook, makes it another one
for the call: ``functional_call`` with other weights, ``norm.eps = ...``, ``layer.train()``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from stripefold.modules.tensors import key_of

_OF_MODULES = frozenset({"_parameters", "_buffers", "_modules"})
_PLAIN = (bool, int, float, complex, str, tuple, type(None))


class LayerStates:
    """What some layers were at first.

    Args:
        layers: all that may be asked about.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._first = {id(layer): (_settings(layer), _tensors(layer)) for layer in layers}

    def has_other_tensors(self, layer: nn.Module) -> bool:
        """Whether its tensors are others by now."""
        return _tensors(layer) != self._first[id(layer)][1]

    def is_another(self, layer: nn.Module) -> bool:
        """Whether anything of it is."""
        return self.has_other_tensors(layer) or not _alike(_settings(layer), self._first[id(layer)][0])


def _settings(layer: nn.Module) -> list[Any]:
    found: list[Any] = []
    for module in layer.modules():
        found.append(type(module))
        for key, value in vars(module).items():
            if key not in _OF_MODULES:
                found += [key, value]
    return found


def _tensors(layer: nn.Module) -> list[Any]:
    return [
        (key, None if tensor is None else key_of(tensor))
        for module in layer.modules()
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
    ]


def _alike(first: list[Any], second: list[Any]) -> bool:
    """Whether two lists hold the same; only what is plain is compared by its value."""
    if len(first) != len(second):
        return False
    return all(
        a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and repr(a) == repr(b))
        for a, b in zip(first, second, strict=True)
    )
