"""Cleans up after Ctrl-C and other interruptions of a public call: modes of the thread and random state.

Context managers do not promise that. An interrupt may come just as one is left: then its end never runs, or much later,
when somebody lets go of the traceback. So every public call is one block of ``Interruptible``, which puts back what the
managers inside may have left: gradients switched off, modes of torch on their stacks, random state.
"""

from __future__ import annotations

import random
import traceback
from types import TracebackType

import numpy as np
import torch

from stripefold.modules.modes_of_torch import mode_flags, set_mode_flags


class Interruptible:
    """A block that leaves nothing behind when it is interrupted; errors and a normal end are none of its business."""

    def __enter__(self) -> None:
        """Note how things stand."""
        self._grad = torch.is_grad_enabled()
        self._functions, self._dispatches = _depths()
        self._flags = mode_flags()
        self._python, self._numpy, self._torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After an interrupt, put everything back; this thread's modes always, for a finalizer may swallow one."""
        interrupted = kind is not None and not issubclass(kind, Exception)
        if interrupted:
            traceback.clear_frames(trace)  # what was being left ends now, and not when the traceback goes
        functions, dispatches = _depths()
        for _ in range(functions - self._functions):
            torch._C._pop_torch_function_stack()
        for _ in range(dispatches - self._dispatches):
            torch._C._pop_torch_dispatch_stack(None)
        torch._C._set_grad_enabled(self._grad)
        if interrupted:
            self._put_back()

    def _put_back(self) -> None:
        """What is of the whole process, and which other threads may have moved on meanwhile."""
        set_mode_flags(self._flags)
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


def _depths() -> tuple[int, int]:
    """How many modes of torch are on: of functions, and of operations."""
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
