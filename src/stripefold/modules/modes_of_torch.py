"""Modes of torch that several threads may be in at once.

A mode itself is of one thread. But torch notes for the whole process whether any is on, and what it notes there is
wrong for good where two threads leave their modes in the order in which they entered them.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

_FLAGS = (
    "_is_in_torch_dispatch_mode",
    "_is_in_non_infra_torch_dispatch_mode",
    "_is_in_any_mode_without_ignore_compile_internals",
)
_lock = threading.RLock()
_active: weakref.WeakSet[ThreadMode] = weakref.WeakSet()
_before: list[tuple[Any, ...]] = []


class ThreadMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode of one thread; what torch notes of it stands while any thread is in one, and is gone afterwards."""

    def __enter__(self) -> Any:
        """Enter it."""
        with _lock:
            if not _active:
                _before[:] = [mode_flags()]
            _active.add(self)
            return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """Leave it."""
        with _lock:
            inside = mode_flags()
            try:
                super().__exit__(*error)  # type: ignore[no-untyped-call]
            finally:
                _active.discard(self)
                if _active:
                    set_mode_flags(inside)
                elif _before:
                    set_mode_flags(_before[0])


def mode_flags() -> tuple[Any, ...]:
    """What torch notes for the process."""
    return tuple(getattr(_python_dispatch, name, None) for name in _FLAGS)


def set_mode_flags(flags: tuple[Any, ...]) -> None:
    """Note it so."""
    for name, value in zip(_FLAGS, flags, strict=True):
        if value is not None:
            setattr(_python_dispatch, name, value)
    tell = getattr(_python_dispatch, "set_is_in_mode_without_ignore_compile_internals", None)
    if tell is not None:  # torch keeps the last one in C++ as well
        tell(bool(flags[-1]))
