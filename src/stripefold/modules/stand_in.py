"""Wrapper modules in the place of a user's layer, which ``isinstance`` takes for that layer.

Code that asks ``isinstance(model.norm, nn.BatchNorm2d)`` (to split the weight decay, to initialise, to choose what to
run) is to find a layer that carries gates as well. ``type(module)`` stays what it is: rules go by exact types.

A walk over all modules (``modules()``, ``named_modules()``, ``apply``) meets the layer inside as well, or the branches
of a block, with the real parameters. There the layer is the instance, once, and what stands in for it is only itself.
"""

from __future__ import annotations

import sys
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard, TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_BY_TYPE = frozenset(
    {
        "convert_sync_batchnorm",  # torch, timm
        "convert_syncbn_model",  # apex
        "convert_splitbn_model",  # timm
        "convert_frozen_batchnorm",  # detectron2
        "freeze_batch_norm_2d",  # timm
        "unfreeze_batch_norm_2d",
    }
)
"""Functions that put another module in the place of each one of a type: they are to go on to the layer inside."""
_ROOMS = ("torch.ao.", "torchao.", "torch.fx.experimental.")
"""Modules of torch that rebuild what they meet by its class."""


class _Walked(threading.local):
    """Which modules the walks of this thread have just handed out."""

    def __init__(self) -> None:
        self.ids: list[int] = []


_walked = _Walked()


class StandIn(nn.Module):
    """A module that is an instance of its own class, and reads as one of the class of the layer it stands for."""

    @property
    @abstractmethod
    def stands_for(self) -> nn.Module | None:
        """The layer; None while there is none yet."""

    def _read_class(self) -> type:
        frame = sys._getframe(1)
        layer = self.stands_for
        if (
            layer is None
            or id(self) in _walked.ids
            or frame.f_code.co_name in _BY_TYPE
            or _room(frame).startswith(_ROOMS)
        ):
            return type(self)
        return layer.__class__

    def _write_class(self, cls: type) -> None:
        """Whoever wraps the class of the layer (FSDP2 does) is to wrap the class of this module."""
        claimed = self._read_class()
        if claimed is not type(self) and claimed in cls.__bases__:
            bases = tuple(type(self) if base is claimed else base for base in cls.__bases__)
            own = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
            cls = type(cls)(cls.__name__, bases, own)
        object.__dict__["__class__"].__set__(self, cls)

    __class__ = property(_read_class, _write_class)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As ``nn.Module.named_modules``."""
        for name, module in super().named_modules(memo, prefix, remove_duplicate):
            if module is not self:
                yield name, module
                continue
            _walked.ids.append(id(self))
            try:
                yield name, module
            finally:
                _walked.ids.remove(id(self))

    def apply(self, fn: Callable[[nn.Module], None]) -> StandIn:
        """As ``nn.Module.apply``."""
        for child in self.children():
            child.apply(fn)
        _walked.ids.append(id(self))
        try:
            fn(self)
        finally:
            _walked.ids.remove(id(self))
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle by what it is, and not by what it reads as."""
        del protocol
        return (_unfilled, (type(self),), self.__dict__)

    def _get_name(self) -> str:
        return type(self).__name__


def _room(frame: Any) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _unfilled(cls: type[nn.Module]) -> nn.Module:
    """A module without attributes, which ``__setstate__`` fills."""
    return object.__new__(cls)


def is_plain(module: object, types: type[ModuleT] | tuple[type[ModuleT], ...]) -> TypeGuard[ModuleT]:
    """Whether a module is itself of these types, and does not just stand in for one."""
    return isinstance(module, types) and not isinstance(module, StandIn)
