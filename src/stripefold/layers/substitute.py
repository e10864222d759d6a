"""Run a layer's own ``forward`` with other tensors in place of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.instancenorm import _InstanceNorm

SUBSTITUTION_COMPILES = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 15)
"""Whether ``torch.compile`` can follow ``substituted``: seen with torch 2.15, not with 2.6 and 2.9."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SHAPE_CHECKS = ("_check_input_dim", "_check_non_zero_input_channels")


def substituted(layer: nn.Module, tensors: Mapping[str, Any]) -> nn.Module:
    """A view of ``layer``: same type, same buffers and children, but with some tensors replaced.

    It has the layer's very type, because a ``forward`` may call ``super().forward`` or a method that reads
    ``self.weight`` (InstanceNorm does). Buffers are shared, so running statistics are updated in place. Unlike
    ``functional_call`` this can be traced, exported and compiled.
    """
    view: nn.Module = object.__new__(type(layer))
    view.__dict__.update(layer.__dict__)
    view.__dict__.update(tensors)  # found before nn.Module.__getattr__ looks among the parameters
    return view


def forward_with(layer: nn.Module, tensors: Mapping[str, Any], args: Any, kwargs: Any) -> Any:
    """``layer(*args, **kwargs)`` computed with ``tensors`` (attribute name -> tensor or child).

    Hooks of the layer run; the module they are given is the view, not the layer.
    """
    view = substituted(layer, tensors)
    if args and isinstance(args[0], fx.Proxy):
        return _forward_symbolic(view, args, kwargs)
    if has_call_hooks(layer):  # of a site's layer: put there after attaching
        return view(*args, **kwargs)
    return type(layer).forward(view, *args, **kwargs)


def has_call_hooks(layer: nn.Module) -> bool:
    """Whether calling the layer runs more than its ``forward``."""
    return any(map(layer.__dict__.get, _HOOKS))


def _forward_symbolic(view: nn.Module, args: Any, kwargs: Any) -> Any:
    """The same while ``torch.fx`` traces: torch's norms branch on shapes, which a tracer has none of."""
    for name in _SHAPE_CHECKS:
        if hasattr(view, name):
            view.__dict__[name] = _no_check
    if isinstance(view, _InstanceNorm):
        return view._apply_instance_norm(*args)  # type: ignore[no-untyped-call]
    return type(view).forward(view, *args, **kwargs)


def _no_check(activation: Any) -> None:
    """Stand in for a check of the input's shape."""
