"""Read the factor of a product that stands in a module's own forward, where no module returns it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from stripefold.graph.operation_names import MULTIPLICATIONS, operation_name
from stripefold.modules.modes_of_torch import ThreadMode
from stripefold.modules.modules import takes_hooks


class ProductMode(ThreadMode):
    """Shows every product of two tensors that runs in one module itself, not in a module inside it.

    Args:
        see: Called with the two factors of each, in the order of computation.
    """

    def __init__(self, see: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inside = 0
        self._see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the factors before the operation, which may overwrite one."""
        if self.inside == 0 and operation_name(func) in MULTIPLICATIONS:
            first, second = args[-2:]
            if isinstance(first, Tensor) and isinstance(second, Tensor):
                self._see(first, second)
        return func(*args, **(kwargs or {}))


@contextmanager
def watching_products(
    module: nn.Module, enter: Callable[[], None], see: Callable[[Tensor, Tensor], None]
) -> Iterator[None]:
    """While open, every call of a module runs under a ``ProductMode`` of its own.

    The module's ``forward`` is wrapped, not hooked: a ``with`` block ends the mode after any exception, a keyboard
    interrupt included, which no hook of torch is called for.

    Args:
        module: The one whose own products are looked at.
        enter: Called at the start of each call.
        see: Called with the two factors of each product.
    """
    modes: list[ProductMode] = []
    forward, had_own = module.forward, "forward" in vars(module)

    @functools.wraps(forward)  # its signature tells how batches are passed
    def watched(*args: Any, **kwargs: Any) -> Any:
        enter()
        mode = ProductMode(see)
        modes.append(mode)
        try:
            with mode:
                return forward(*args, **kwargs)
        finally:
            modes.pop()

    def step(by: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if modes:
                modes[-1].inside += by

        return hook

    with ExitStack() as stack:
        for part in module.modules():
            # What is scripted takes no hooks: its operations are recorded as the module's own, here as in the trace.
            if part is not module and takes_hooks(part):
                stack.callback(part.register_forward_pre_hook(step(1)).remove)
                stack.callback(part.register_forward_hook(step(-1), always_call=True).remove)
        attributes = vars(module)
        attributes["forward"] = watched
        stack.callback(lambda: attributes.update(forward=forward) if had_own else attributes.pop("forward", None))
        yield
