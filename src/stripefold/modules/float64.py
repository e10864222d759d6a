"""Run a model in true float64, also where its code casts down to float32 inside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stripefold.modules.structural_copy import structural_copy

_NARROW = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}
_CASTS = {"float": torch.float64, "half": torch.float64, "bfloat16": torch.float64, "cfloat": torch.complex128}
# Tensors out of nothing, which have torch's default type where none is said. Not the random ones: the same seed gives
# other numbers in another type.
_FACTORIES = frozenset({"zeros", "ones", "empty", "full", "linspace", "logspace", "arange", "eye", "tensor"})


def float64_copy(model: nn.Module) -> nn.Module:
    """A deep copy in which every floating-point tensor is float64 and every complex one complex128.

    Raises:
        RuntimeError, TypeError, pickle.PickleError: what ``copy.deepcopy`` raises on a model that cannot be copied.
    """
    with torch.no_grad():
        # The structural copy first: other threads may be running the model, which changes what it holds.
        copied: nn.Module = copy.deepcopy(structural_copy(model))._apply(widened)  # type: ignore[no-untyped-call]
    return copied


def is_float64(model: nn.Module) -> bool:
    """Whether every floating-point tensor of a model is float64."""
    return all(tensor.dtype not in _NARROW for tensor in (*model.parameters(), *model.buffers()))


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float64, or complex128; one that holds integers as it is."""
    return tensor.to(_NARROW[tensor.dtype]) if tensor.dtype in _NARROW else tensor


class KeepFloat64(TorchFunctionMode):
    """Casts to a narrower floating type go to float64 instead, and new tensors are made in it.

    Many transformers compute a norm or a softmax in float32 whatever the model's dtype; in a float64 model that
    rounding hides errors of the algebra below 1e-7. Both models of a comparison run under this mode. What really is of
    a narrow type, a layer that was left in it, stays in it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, with other types asked for."""
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if args and isinstance(args[0], Tensor) and args[0].dtype not in _NARROW:
            if name in _CASTS:
                return args[0].to(_CASTS[name] if not args[0].is_complex() else torch.complex128)
            if name in ("to", "type"):
                args = (args[0], *(_NARROW.get(a, a) if isinstance(a, torch.dtype) else a for a in args[1:]))
            kwargs = _wide(kwargs)
        elif name in _FACTORIES:
            kwargs = _wide(kwargs)
            return _made_wide(func, args, kwargs)
        return func(*args, **kwargs)


def _wide(kwargs: dict[str, Any]) -> dict[str, Any]:
    dtype = kwargs.get("dtype")
    return {**kwargs, "dtype": _NARROW[dtype]} if isinstance(dtype, torch.dtype) and dtype in _NARROW else kwargs


def _made_wide(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """A new tensor; one of the default type is made again in float64, where 0.1 is another number."""
    made = func(*args, **kwargs)
    if kwargs.get("dtype") is None and "out" not in kwargs and made.dtype in _NARROW:
        return func(*args, **{**kwargs, "dtype": _NARROW[made.dtype]})
    return made
