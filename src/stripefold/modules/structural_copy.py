"""A copy of a model to run instead of it: its own modules, hooks, helpers and buffers, on the model's own parameters.

Whatever such a run changes (caches, counters, modes, streaming state in helper objects and closures) is changed in the
copy. Nothing of the model itself is touched, so nothing has to be put back, and other threads may go on using it.

``copy.deepcopy`` is not that: it clones the weights, shares closures and hooks with the original, and gives up on
locks, tensors in the middle of a graph and scripted functions.
"""

from __future__ import annotations

import collections
import copy
import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from stripefold.modules.tensors import storage_of

# Never copied: what cannot change, or what belongs to the process and not to the model.
_ATOMIC = (
    type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range, slice, type, torch.dtype, torch.device,
    torch.Size, torch.layout, torch.memory_format, types.ModuleType, types.BuiltinFunctionType, types.CodeType,
    property, torch.fx.Graph, torch._C.ScriptObject, torch.jit.ScriptFunction, torch.cuda.Stream,
)  # fmt: skip
# Of Lightning's modules: what runs them.
_NOT_OF_THE_MODEL = frozenset({"_trainer", "_fabric"})


def structural_copy(model: nn.Module, *, own_parameters: bool = False) -> nn.Module:
    """A runnable copy that shares the storage of the parameters, and nothing else that a run changes.

    Closures in it (hooks, a ``forward`` put on a module) refer to its own modules. Objects that cannot be copied
    (locks, open files) are shared. Class attributes and module globals are not part of a model, and are shared.

    Args:
        model: Any model; only read.
        own_parameters: Clone the parameters as well, for models that write to them in their ``forward``.
    """
    return structural_copies(model, own_parameters=own_parameters)[0]


def structural_copies(*models: nn.Module, own_parameters: bool = False) -> tuple[nn.Module, ...]:
    """Copies of several models that share with each other what the models share."""
    parameters = {storage_of(parameter) for model in models for parameter in list(model.parameters())}
    copier = _Copier(parameters, own_parameters)
    with torch.no_grad():
        return tuple(copier.copy(model) for model in models)


def shared_storages(model: nn.Module) -> frozenset[int]:
    """The storages that a structural copy shares with its model: nothing may write to them."""
    return frozenset(storage_of(parameter) for parameter in list(model.parameters()))


class _Copier:
    """One copy in the making.

    Args:
        parameters: Storages that stay shared.
        own_parameters: They do not.
    """

    def __init__(self, parameters: set[int], own_parameters: bool) -> None:
        self._shared = set() if own_parameters else parameters
        self._own_parameters = own_parameters
        self._memo: dict[int, Any] = {}  # as of ``copy.deepcopy``: id -> copy
        self._alive: list[Any] = []  # no id may be used twice meanwhile
        self._storages: dict[int, torch.UntypedStorage] = {}

    def copy(self, value: Any) -> Any:
        """The copy of any value, the same for the same object."""
        if isinstance(value, _ATOMIC):
            return value
        if id(value) in self._memo:
            return self._memo[id(value)]
        self._alive.append(value)
        return self._remember(value, self._made(value))

    def _remember(self, value: Any, made: Any) -> Any:
        return self._memo.setdefault(id(value), made)

    def _made(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule):
            return self._module(value)
        maker = _MAKERS.get(type(value))
        if maker is not None:
            return maker(self, value)
        try:
            return self._object(value)
        except (KeyboardInterrupt, SystemExit, RecursionError, MemoryError):
            raise
        except BaseException:  # other people's __reduce__, __deepcopy__ and __setstate__ may raise anything
            self._memo.pop(id(value), None)
            return value  # it is shared, as in an ordinary run

    # Tensors.

    def _tensor(self, tensor: Tensor) -> Tensor:
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            return tensor  # nobody can write to it
        if type(tensor) not in (Tensor, nn.Parameter):
            return self._special_tensor(tensor)
        made = self._on_storage(tensor) if tensor.layout is torch.strided and not tensor.is_quantized else None
        if made is None:
            made = tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.requires_grad)
        else:
            made.requires_grad_(tensor.requires_grad)
        self._remember(tensor, made)
        for key, value in vars(tensor).items():  # what users write on a parameter: ``_no_weight_decay``
            if key not in vars(made):
                made.__dict__[key] = self.copy(value)
        return made

    def _on_storage(self, tensor: Tensor) -> Tensor | None:
        """The same view of the copied storage: tensors that shared memory share it again."""
        try:
            storage, key = tensor.untyped_storage(), storage_of(tensor)
            if key in self._shared:
                return tensor.detach()
            if key not in self._storages:
                self._alive.append(storage)
                self._storages[key] = storage.clone()  # type: ignore[no-untyped-call]
            made = torch.empty((0,), dtype=tensor.dtype, device=tensor.device)
            made.set_(self._storages[key], tensor.storage_offset(), tensor.shape, tensor.stride())
        except (RuntimeError, NotImplementedError):
            return None
        return made.conj() if tensor.is_conj() else made

    def _special_tensor(self, tensor: Tensor) -> Tensor:
        """A subclass: a parameter of a kind of its own is shared, another tensor is cloned where it can be."""
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):  # a lazy module makes it real in place
            return copy.deepcopy(tensor)
        if isinstance(tensor, nn.Parameter) or getattr(tensor, "_is_param", False):
            made: Tensor = copy.deepcopy(tensor) if self._own_parameters else tensor
            return made
        try:
            return tensor.detach().clone()
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            return tensor

    # Modules, containers, functions.

    def _module(self, module: nn.Module) -> nn.Module:
        made: nn.Module = object.__new__(type(module))
        self._remember(module, made)
        attributes = dict(vars(module))
        if type(module).__name__ == "OptimizedModule":  # the copy runs without what was compiled for the original
            attributes["forward"] = getattr(module, "_orig_mod").__call__  # noqa: B009
        for key, value in attributes.items():
            made.__dict__[key] = value if key in _NOT_OF_THE_MODEL else self.copy(value)
        return made

    def _dict(self, value: dict[Any, Any]) -> Any:
        made: Any = type(value)() if not isinstance(value, collections.defaultdict) else None
        if made is None:
            made = collections.defaultdict(self.copy(value.default_factory))  # type: ignore[attr-defined]
        self._remember(value, made)
        for key, item in list(value.items()):
            made[self.copy(key)] = self.copy(item)
        return made

    def _list(self, value: list[Any]) -> list[Any]:
        made: list[Any] = self._remember(value, [])
        made.extend(self.copy(item) for item in list(value))
        return made

    def _deque(self, value: collections.deque[Any]) -> collections.deque[Any]:
        made: collections.deque[Any] = self._remember(value, collections.deque(maxlen=value.maxlen))
        made.extend(self.copy(item) for item in list(value))
        return made

    def _fixed(self, value: Any) -> Any:
        """Tuples and sets; one that holds nothing to copy stays what it is."""
        items = list(value)
        made = [self.copy(item) for item in items]
        if id(value) in self._memo:  # a tuple that holds itself, by way of a list
            return self._memo[id(value)]
        unchanged = type(value) in (tuple, frozenset) and all(a is b for a, b in zip(items, made, strict=True))
        return value if unchanged else type(value)(made)

    def _function(self, value: types.FunctionType) -> types.FunctionType:
        """A closure over copies; a function that holds nothing is itself."""
        if not (value.__closure__ or vars(value) or value.__defaults__ or value.__kwdefaults__):
            return value
        closure = tuple(self._cell(cell) for cell in value.__closure__ or ()) or None
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, closure)
        self._remember(value, made)
        for cell, new in zip(value.__closure__ or (), closure or (), strict=True):
            self._fill(cell, new)
        made.__defaults__ = self.copy(value.__defaults__)
        made.__kwdefaults__ = self.copy(value.__kwdefaults__)
        made.__qualname__, made.__module__, made.__doc__ = value.__qualname__, value.__module__, value.__doc__
        for key, item in list(vars(value).items()):
            setattr(made, key, self.copy(item))
        return made

    def _cell(self, cell: types.CellType) -> types.CellType:
        if id(cell) not in self._memo:
            self._alive.append(cell)
            self._memo[id(cell)] = types.CellType()
        return self._memo[id(cell)]  # type: ignore[no-any-return]

    def _fill(self, cell: types.CellType, new: types.CellType) -> None:
        try:
            content = cell.cell_contents
        except ValueError:  # still empty
            return
        new.cell_contents = self.copy(content)

    def _method(self, value: types.MethodType) -> types.MethodType:
        return types.MethodType(self.copy(value.__func__), self.copy(value.__self__))

    def _partial(self, value: functools.partial[Any]) -> functools.partial[Any]:
        keywords = {key: self.copy(item) for key, item in value.keywords.items()}
        return functools.partial(self.copy(value.func), *map(self.copy, value.args), **keywords)

    def _reference(self, value: weakref.ref[Any]) -> weakref.ref[Any]:
        """A weak reference to a module or a tensor is one to its copy."""
        target = value()
        return weakref.ref(self.copy(target)) if isinstance(target, (nn.Module, Tensor)) else value

    def _generator(self, value: torch.Generator) -> torch.Generator:
        made = torch.Generator(value.device)
        made.set_state(value.get_state())
        return made

    # Anything else, by the protocol of ``copy``.

    def _object(self, value: Any) -> Any:
        own = getattr(type(value), "__deepcopy__", None)
        if own is not None:
            return own(value, self._memo)
        reduced = value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return value
        function, args, state, items, pairs = (*reduced, None, None, None)[:5]
        made = function(*(self.copy(arg) for arg in args))
        self._remember(value, made)
        if state is not None:
            self._restore(made, self.copy(state))
        for item in items or ():
            made.append(self.copy(item))
        for key, item in pairs or ():
            made[self.copy(key)] = self.copy(item)
        return made

    def _restore(self, made: Any, state: Any) -> None:
        if hasattr(made, "__setstate__"):
            made.__setstate__(state)
            return
        slots: dict[str, Any] = {}
        if isinstance(state, tuple) and len(state) == 2:
            state, slots = state[0] or {}, state[1] or {}
        vars(made).update(state) if state else None
        for key, item in slots.items():
            setattr(made, key, item)


_MAKERS: dict[type, Callable[[_Copier, Any], Any]] = {
    dict: _Copier._dict,
    collections.OrderedDict: _Copier._dict,
    collections.defaultdict: _Copier._dict,
    list: _Copier._list,
    collections.deque: _Copier._deque,
    tuple: _Copier._fixed,
    set: _Copier._fixed,
    frozenset: _Copier._fixed,
    types.FunctionType: _Copier._function,
    types.MethodType: _Copier._method,
    functools.partial: _Copier._partial,
    weakref.ref: _Copier._reference,
    torch.Generator: _Copier._generator,
}
