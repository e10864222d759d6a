"""A read-only tensor: computed from parameters, so that writing to it would be lost.

``site.weight`` is the product of a gate and a parameter: a write to it would be lost in silence, so it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stripefold.errors import AttachError


class ComputedTensor(torch.Tensor):
    """A result of a computation that raises on in-place writes; every operation on it gives plain tensors."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _writes_to_computed(func, args, kwargs):
            raise AttachError(
                f"{func.__name__} on the weight or bias of a site or branch block: that tensor is computed, and the "
                "write would be lost. Write to the parameters inside: site.base.weight, block.branches.main.conv.weight"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]  # a new object at every look
            return result.as_subclass(cls)
        return result


def computed(tensor: Any) -> Any:
    """Mark a computed tensor read-only; left alone while compiling or tracing, where subclasses cost or break."""
    if not isinstance(tensor, Tensor) or torch.compiler.is_compiling() or torch._C._is_tracing():
        return tensor
    return tensor.as_subclass(ComputedTensor)


def _writes_to_computed(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if isinstance(kwargs.get("out"), ComputedTensor):
        return True
    target = next(iter((*args, *kwargs.values())), None)  # the functions of nn.init pass theirs by name
    if not isinstance(target, ComputedTensor):
        return False
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in ("__setitem__", "__set__") or (name.startswith("__i") and name in _IN_PLACE_OPERATORS)


_IN_PLACE_OPERATORS = frozenset(
    f"__i{op}__" for op in ("add", "sub", "mul", "truediv", "div", "floordiv", "mod", "pow", "and", "or", "xor")
)
