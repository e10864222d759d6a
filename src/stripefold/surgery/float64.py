"""Run a model in true float64, also where its code casts down to float32 inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class KeepFloat64(TorchFunctionMode):
    """Casts from float64 to a narrower floating type are left out.

    Many transformers compute a norm or a softmax in float32 whatever the model's dtype; in a float64 model that
    rounding hides errors of the algebra below 1e-7. Both models of a comparison run under this mode.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not (args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in ("float", "half", "bfloat16"):
            return args[0]
        if name in ("to", "type"):
            args = (args[0], *(torch.float64 if _is_narrow(a) else a for a in args[1:]))
        if _is_narrow(kwargs.get("dtype")):
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def _is_narrow(value: object) -> bool:
    return isinstance(value, torch.dtype) and value in _NARROW
