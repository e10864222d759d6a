"""In-place changes that happen as a whole or not at all, whatever is raised in the middle: an error, or Ctrl-C.

The change itself is made on the user's own objects. What they hold is noted before, their numbers when they are first
overwritten; if the change does not get to its end, all of it is put back.
"""

from __future__ import annotations

import copy
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, fx, nn

from stripefold.modules.modes_of_torch import ThreadMode
from stripefold.modules.modules import CONTAINERS, SHAPELESS, is_helper
from stripefold.modules.preserve_state import written
from stripefold.modules.tensors import storage_of

_NO_STORAGE = (RuntimeError, NotImplementedError)
"""What tensors raise that have no memory to read or write: on the meta device, of some subclasses."""


class AllOrNothing:
    """A block in which a model may be changed in place; where it raises, the model is put back as it was.

    Modules, parameters, hooks and containers are again the very objects that they were. The numbers of tensors that
    are written to are kept meanwhile, and nothing else: no copy of the model is made.

    Enter it twice, ``with change, change:``. An interrupt may come on the way out of the inner block, just as an error
    is leaving it; it finds the outer one.

    Args:
        model: it is changed in this thread, and in no other one meanwhile.
        commit: False puts the model back in any case. Such a block may be entered again and again, and each time the
            model is what it was when the block was made.
    """

    def __init__(self, model: nn.Module, *, commit: bool = True) -> None:
        self._before, self._commit = _Before(model), commit

    def __enter__(self) -> None:
        """Begin to note what is overwritten."""
        self._before.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put everything back where something was raised."""
        try:
            self._before.__exit__(kind, error, trace)
        finally:
            if kind is None and not self._commit:
                self._before.put_back()
            while kind is not None:
                try:
                    self._before.put_back()
                    kind = None
                except KeyboardInterrupt:  # pressed again: half put back would be worse than a late answer
                    continue


class _Before(ThreadMode):
    """What a model holds, and what its tensors held before they were first written to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held: list[tuple[Any, Any]] = []
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._graphs: list[tuple[fx.GraphModule, fx.Graph, str]] = []
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._overwritten: dict[int, torch.UntypedStorage] = {}
        self._walk(model)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; what it overwrites of the model's own is kept."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for tensor in written(func, args, kwargs):
                self._keep(storage_of(tensor))
        return func(*args, **kwargs)

    def _keep(self, key: int) -> None:
        if key in self._storages and key not in self._overwritten:
            with suppress(*_NO_STORAGE):
                self._overwritten[key] = self._storages[key].clone()  # type: ignore[no-untyped-call]

    # Looking.

    def _walk(self, model: nn.Module) -> None:
        """Note modules, containers and helper objects, however deep; tensors with the memory that they lie in."""
        seen: set[int] = set()
        todo: list[Any] = [model]
        while todo:
            value = todo.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Tensor):
                self._note_tensor(value)
            elif isinstance(value, (nn.Module, *CONTAINERS)) or is_helper(value):
                todo += self._noted(value)

    def _noted(self, value: Any) -> list[Any]:
        """What a module, a container or a helper holds; noted unless it cannot change."""
        if isinstance(value, fx.GraphModule):
            graph = copy.deepcopy(value.graph)
            self._graphs.append((value, graph, str(graph)))
        holder = value if isinstance(value, CONTAINERS) else vars(value)
        if not isinstance(holder, (tuple, frozenset)):
            self._held.append((holder, holder.copy()))
        return list(holder.values() if isinstance(holder, dict) else holder)

    def _note_tensor(self, tensor: Tensor) -> None:
        if isinstance(tensor, SHAPELESS):
            return
        with suppress(*_NO_STORAGE):
            self._tensors[id(tensor)] = (tensor, tensor.detach())
            self._storages[storage_of(tensor)] = tensor.untyped_storage()

    # Putting back.

    @torch.no_grad()
    def put_back(self) -> None:
        """Make everything what it was; once more changes nothing."""
        for holder, content in self._held:
            _refill(holder, content)
        for tensor, own in self._tensors.values():
            if tensor.dtype != own.dtype or storage_of(tensor) != storage_of(own):  # moved, or cast in place
                tensor.data = own
        for key, numbers in self._overwritten.items():
            self._storages[key].copy_(numbers)
        for module, graph, text in self._graphs:
            if str(module.graph) != text:
                module.graph = graph


def _refill(holder: Any, content: Any) -> None:
    """Give a container the content that it had; one that still has it is left alone."""
    if not holder and not content:
        return
    if isinstance(holder, dict):
        if list(holder) == list(content):  # other threads may read what has not changed
            for key, value in content.items():
                if holder[key] is not value:
                    holder[key] = value
            return
        holder.clear()
        holder.update(content)
    elif isinstance(holder, set):
        if {id(each) for each in holder} != {id(each) for each in content}:
            holder.clear()
            holder.update(content)
    elif len(holder) != len(content) or any(a is not b for a, b in zip(holder, content, strict=True)):
        holder.clear()
        holder.extend(content)
        assert isinstance(holder, (list, deque))
