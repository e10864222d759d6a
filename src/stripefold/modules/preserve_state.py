"""Runs a model and restores all state afterwards: on a structural copy, in the mode of use, random state kept.

Everything here is of this thread: modes of torch that are switched are thread-local ones, and random state is put back
only where the run itself has drawn from it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stripefold.modules.modes_of_torch import ThreadMode
from stripefold.modules.structural_copy import shared_storages, structural_copy
from stripefold.modules.tensors import storage_of, tensors_in

T = TypeVar("T")


class ParametersWrittenError(Exception):
    """A run was about to write into the model's own parameters; it has to run on clones of them."""


@contextmanager
def preserve_state(model: nn.Module, *, own_parameters: bool = False) -> Iterator[nn.Module]:
    """A copy to run, without gradients; the model stays as it is, whatever the run does.

    The copy is in the mode in which the model is used: as it stands where the model is in evaluation mode (a norm that
    was left in training mode stays there), after its own ``eval()`` where it is in training mode.

    Args:
        model: Any model; only read.
        own_parameters: Clone the parameters too (see ``on_copies``).

    Yields:
        The copy. A write into a parameter that it shares raises ParametersWrittenError before it happens.
    """
    with torch.no_grad(), random_state_kept(model) as guard:
        copied, guard.protected = _in_use(model, guard, own_parameters)
        yield copied


def on_copies(action: Callable[..., T], *models: nn.Module) -> T:
    """The result of an action on copies of some models, which are cloned as a whole where they write to parameters."""
    for own_parameters in (False, True):
        try:
            with ExitStack() as stack:
                return action(*(stack.enter_context(preserve_state(m, own_parameters=own_parameters)) for m in models))
        except ParametersWrittenError:
            if own_parameters:
                raise
    raise AssertionError("the second try has returned or raised")


def _in_use(model: nn.Module, guard: Guard, own_parameters: bool) -> tuple[nn.Module, frozenset[int]]:
    """The copy in the mode in which the model is used, and the storages that it shares with it."""
    copied = structural_copy(model, own_parameters=own_parameters)
    shared = frozenset() if own_parameters else shared_storages(model)
    for module in copied.modules():
        if "_compiled_call_impl" in vars(module):  # a compiled call would hide the operations, and keeps the old code
            vars(module)["_compiled_call_impl"] = None
    if copied.training:
        guard.protected = shared
        try:
            copied.eval()  # a model's own may do more than set flags: merge weights, keep a norm in training mode
        except ParametersWrittenError:
            return _in_use(model, guard, True)
        except NotImplementedError:  # an exported program has no modes
            pass
        finally:
            guard.protected = frozenset()
    return copied, shared


class Guard(ThreadMode):
    """Sees every operation of this thread: stops writes into protected storages, notes random draws.

    Attributes:
        protected: Storages that nothing may write to.
        drew: Whether random numbers of torch's were drawn.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.protected: Collection[int] = frozenset()
        self.drew = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation where it is allowed."""
        kwargs = kwargs or {}
        if func._schema.is_mutable and self.protected:
            for tensor in written(func, args, kwargs):
                if storage_of(tensor) in self.protected:
                    raise ParametersWrittenError(f"{func} writes into a parameter")
        self.drew = self.drew or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **kwargs)


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that an operation writes to, after its schema."""
    targets: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            targets += tensors_in(value)
    return targets


class NoFusedAttention(TorchFunctionMode):
    """Keeps torch's attention and transformer layers off their fused paths, which call no layers; for this thread.

    Those paths are not taken while anything overrides torch functions, so that this mode needs to do nothing.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function."""
        return func(*args, **(kwargs or {}))


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[Guard]:
    """Put the random states back that a run inside has moved on, so that the next one draws the same numbers.

    Args:
        model: On whose devices it runs.
    """
    guard, devices = Guard(), _cuda_devices(model)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    cuda_states = {device: torch.cuda.get_rng_state(device) for device in devices}
    try:
        with guard:
            yield guard
    finally:
        # What the run has not drawn from, another thread may have moved on.
        if guard.drew and not torch.equal(torch.get_rng_state(), torch_state):
            torch.set_rng_state(torch_state)
        for device, state in cuda_states.items() if guard.drew else ():
            torch.cuda.set_rng_state(state, device)
        if random.getstate() != python_state:
            random.setstate(python_state)
        if not _same_state(np.random.get_state(), numpy_state):
            np.random.set_state(numpy_state)


def _same_state(first: Any, second: Any) -> bool:
    return bool(first[2:] == second[2:] and (first[1] == second[1]).all())


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {tensor.device for tensor in model.parameters()}
    return sorted({device.index or 0 for device in devices if device.type == "cuda"})
