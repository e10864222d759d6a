"""Run a layer's own ``forward`` with other tensors in place of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Substituted:
    """What a layer's ``forward`` sees as ``self``: the layer, but with some tensors replaced.

    The layer's own code runs, for every type there is a rule for: nothing is re-implemented, running statistics are
    updated in place, and, unlike ``functional_call``, it can be traced, exported and compiled.
    """

    def __init__(self, layer: nn.Module, tensors: Mapping[str, Tensor | None]) -> None:
        self._layer = layer
        self.__dict__.update(tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)


def forward_with(layer: nn.Module, tensors: Mapping[str, Tensor | None], args: Any, kwargs: Any) -> Any:
    """``layer.forward(*args, **kwargs)`` computed with ``tensors`` (attribute name -> tensor)."""
    return type(layer).forward(Substituted(layer, tensors), *args, **kwargs)  # type: ignore[arg-type]
