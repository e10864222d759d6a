"""Record one run of a model as a graph: a dispatch mode sees the operations, hooks on a copy bracket the module calls.

Both see this thread's run of this one copy only.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.graph.given import Given
from stripefold.graph.graph import Call, Graph, Node, Role
from stripefold.graph.layer_states import LayerStates
from stripefold.graph.module_calls import ModuleCalls, Results, is_alone
from stripefold.graph.operation_names import (
    ESCAPED,
    FACTORIES,
    INTO_PYTHON,
    LOOKUPS,
    OUT_OF_TORCH,
    OVERWRITES,
    RECURRENT,
    WEIGHTED,
    WRITE,
    operation_name,
)
from stripefold.graph.values import Values, WeakStorages
from stripefold.modules.modes_of_torch import ThreadMode
from stripefold.modules.modules import takes_hooks
from stripefold.modules.preserve_state import NoFusedAttention, written
from stripefold.modules.tensors import (
    TensorKey,
    input_changed_by_hook,
    key_of,
    storage_of,
    tensors_in,
    tensors_of,
    unbroadcast_numel,
)


@dataclass
class _Frame:
    """A layer call that is going on: what runs inside it is not recorded, only what it is made of."""

    layer: nn.Module
    depth: int
    given: tuple[TensorKey, ...] = ()
    used: list[int] = field(default_factory=list)
    inner: list[str] = field(default_factory=list)
    written: list[Tensor] = field(default_factory=list)
    derived: dict[int, Tensor] = field(default_factory=dict)


class Recorder(ThreadMode):
    """The state of one recording.

    Args:
        names: ``id(module)`` -> dotted path.
        layers: every module that is one opaque layer.
        owners: storage of a parameter -> layer that owns it.
        holders: storage of a parameter -> ``id`` of every module that holds it directly.
    """

    def __init__(
        self, names: dict[int, str], layers: Collection[nn.Module], owners: dict[int, str], holders: dict[int, set[int]]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.values = Values()
        self.module_calls = ModuleCalls()
        self.stack: list[nn.Module] = []
        self._names, self._owners, self._holders = names, owners, holders
        self._layers = {id(layer) for layer in layers}
        self._states = LayerStates(layers)
        self._escaped, self._inside = WeakStorages(), dict[int, tuple[int, ...]]()
        self._frame: _Frame | None = None
        self._thread: int | None = None

    @property
    def path(self) -> str:
        """Dotted path of the innermost module of the model that is running."""
        for module in reversed(self.stack):
            name = self._names.get(id(module))
            if name is not None:
                return name
        return ""

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[Recorder]:
        """Record what runs inside.

        Args:
            model: a structural copy; nobody else runs it.
        """
        self._thread = threading.get_ident()
        for module in model.modules():
            if takes_hooks(module):  # of what takes none, the operations are seen
                self._watch(module)
        with _Reads(self), self:
            yield self

    def _watch(self, module: nn.Module) -> None:
        """Bracket the calls of a module, outside its own hooks."""

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            with torch._C.DisableTorchFunction():  # what is done here is not the model's doing
                self._enter(module, args)

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            with torch._C.DisableTorchFunction():
                self._leave(module, args, kwargs, output)

        module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        module.register_forward_hook(leave, prepend=True, with_kwargs=True)

    def take_inputs(self, example: Any) -> None:
        """Make every tensor of the example an input node."""
        for tensor in tensors_in(example):
            role: Role = "activation" if _is_continuous(tensor) else "integer_dependent"
            self._put(tensor, Node(kind="input", role=role))

    def take_outputs(self, outputs: Any) -> None:
        """Note what the model returned."""
        for index in self._known([tensor for _, tensor in tensors_of(outputs)]):
            self.graph.outputs[index] = "is returned by the model"
        self.graph.module_calls = self.module_calls.done

    def take_kept(self) -> None:
        """Note what is still there after the run, though not returned: on a module, in a hook's list, in a buffer."""
        if self._kept():
            gc.collect()  # a forward leaves cycles (a caught error, a recursive function), which hold what nobody sees
        self.graph.outputs.update(dict.fromkeys(self._kept(), "is kept after the run"))

    def _kept(self) -> set[int]:
        kept = {*self.values.kept(), *(i for each in self._escaped.alive() for i in self._inside[each])}
        nodes = self.graph.nodes
        return {i for i in kept - self.graph.outputs.keys() if nodes[i].kind != "input" and nodes[i].role != "constant"}

    def take_read(self, tensor: Tensor, name: str) -> None:
        """Note that a value has left torch: as a number, a list, an array."""
        if self._frame is not None:
            self._note_inside(self._frame, name, tensor, ([], None))
            return
        node = Node(
            kind="operation", name=name, inputs=(self._node_of(tensor),), role="integer_dependent", where=self.path
        )
        self._read(self.graph.add(node))

    def _read(self, index: int) -> None:
        node = self.graph.nodes[index]
        self.graph.outputs[index] = f"is read by Python in {node.where or 'the model itself'!r}"
        if any(self.graph.nodes[i].role != "constant" for i in node.inputs):
            self.graph.data_dependent_reads.append(node.where)

    def _put(self, tensor: Tensor, node: Node, *, weighted: bool = False) -> int:
        node = replace(node, shape=tuple(tensor.shape), unbroadcast_numel=unbroadcast_numel(tensor))
        index = self.graph.add(node, weighted=weighted)
        self.values.set(tensor, index)
        self.graph.visible.setdefault(self.path, set()).add(index)
        return index

    # Layer calls.

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError(f"{self._names.get(id(module))!r} is called in a thread that the model starts")
        self.stack.append(module)
        if self._frame is None:
            inputs = self._known(args)
            self.graph.visible.setdefault(self.path, set()).update(inputs)
            self.module_calls.enter(len(self.stack), len(self.graph.nodes), inputs)
        if self._frame is None and id(module) in self._layers and self._states.is_another(module):
            self.graph.changed.add(self._names[id(module)])
        if self._frame is None and (id(module) in self._layers or isinstance(module, nn.RNNBase)):
            self._frame = _Frame(module, len(self.stack), tuple(map(key_of, tensors_in(args))))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # A module whose call failed and was caught inside the model never got here: drop it, too.
        while self.stack and self.stack[-1] is not module:
            self.stack.pop()
        frame = self._frame
        if frame is not None and frame.layer is module and frame.depth == len(self.stack):
            self._frame = None
            self._close(frame, (args, kwargs), output)
        elif frame is not None and len(self.stack) < frame.depth:
            self._frame = None
        if self._frame is None:
            results = Results(self._known(args), self._known(output), alone=is_alone(args, kwargs))
            self.module_calls.leave(len(self.stack), self._names.get(id(module)), len(self.graph.nodes), results)
        if self.stack:
            self.stack.pop()
        if self._frame is None:
            self.graph.visible.setdefault(self.path, set()).update(self._known(output))

    def _known(self, structure: Any) -> tuple[int, ...]:
        found = (self.values.find(tensor) for tensor in tensors_in(structure))
        return tuple(node for node in found if node is not None)

    def _close(self, frame: _Frame, arguments: Any, output: Any) -> None:
        inputs = tuple(dict.fromkeys([*self._known(arguments), *frame.used]))
        unchanged = {key_of(tensor) for tensor in tensors_in(arguments)} - {key_of(tensor) for tensor in frame.written}
        fresh = [tensor for tensor in tensors_in(output) if key_of(tensor) not in unchanged]
        name, role = self._names.get(id(frame.layer), self.path), self._role_of_layer(inputs)
        node = Node(kind="operation", name=RECURRENT, inputs=inputs, role=role, where=name, inner=tuple(frame.inner))
        if id(frame.layer) in self._layers:
            if self._states.has_other_tensors(frame.layer):
                self.graph.changed.add(name)
            call = self._add_call(name, inputs, [tuple(t.shape) for t in tensors_in(output)], implicit=False)
            self.graph.calls[call] = replace(
                self.graph.calls[call],
                input_changed_by_hook=input_changed_by_hook(frame.given, arguments[0], frame.written),
                given=_given(*arguments),
            )
            node = replace(node, kind="layer", name=name, call=call)
        for tensor in fresh:
            index = self._put(tensor, node, weighted=node.call < 0)
            self._refresh_aliases(tensor, index)
        for storage, tensor in frame.derived.items():
            if storage not in self._owners and self.values.find(tensor) is None:
                self._escaped.add(tensor)
                self._inside[storage] = inputs

    def _add_call(self, name: str, inputs: tuple[int, ...], outputs: list[tuple[int, ...]], *, implicit: bool) -> int:
        nodes = self.graph.nodes
        shapes = tuple(nodes[i].shape for i in inputs if not implicit or nodes[i].role != "constant")
        self.graph.calls.append(Call(name, shapes, tuple(outputs), implicit))
        return len(self.graph.calls) - 1

    def _role_of_layer(self, inputs: tuple[int, ...]) -> Role:
        return "constant" if all(self.graph.nodes[i].role == "constant" for i in inputs) else "activation"

    # Operations.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then note it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = operation_name(func)
        changed = written(func, args, kwargs) if func._schema.is_mutable else []
        if self._frame is not None:
            self._note_inside(self._frame, name, (args, kwargs), (changed, result))
        else:
            self._note(func, _bound(func, args, kwargs), (changed, result))
        return result

    def _note_inside(self, frame: _Frame, name: str, arguments: Any, results: tuple[list[Tensor], Any]) -> None:
        """Inside a layer only what touches activations counts: used, written, and by which operations."""
        depends = False
        for tensor in tensors_in(arguments):
            index = self.values.find(tensor)
            if index is not None and self.graph.nodes[index].role != "constant":
                frame.used.append(index)
                depends = True
            depends = depends or storage_of(tensor) in frame.derived
        if depends:
            frame.inner.append(name)
            if name in INTO_PYTHON | OUT_OF_TORCH:
                where = self._names.get(id(frame.layer), self.path)
                self.graph.outputs.update((index, f"is read by Python in {where!r}") for index in frame.used)
            frame.derived.update((storage_of(tensor), tensor) for tensor in tensors_in(results))
            frame.written += [tensor for tensor in results[0] if self.values.find(tensor) is not None]

    def _note(self, func: Any, bound: Mapping[str, Any], results: tuple[list[Tensor], Any]) -> None:
        (name, bound), (changed, result) = _number_last(operation_name(func), bound), results
        operands = list(tensors_in(bound))
        self.graph.read |= {self._owners[storage_of(each)] for each in changed if storage_of(each) in self._owners}
        if name in OVERWRITES and changed:
            operands = [tensor for tensor in operands if all(tensor is not target for target in changed)]
        # What is written, and what is new: a function may do both (``rrelu_with_noise``, a norm with statistics).
        known = {key_of(tensor) for tensor in (*operands, *changed)}
        outputs = [*changed, *(tensor for tensor in tensors_in(result) if key_of(tensor) not in known)]
        inputs = () if name in FACTORIES else tuple(self._node_of(tensor) for tensor in operands)
        constants = [self.graph.nodes[i] for i in inputs if self.graph.nodes[i].role == "constant"]
        if name in INTO_PYTHON:
            node = Node(kind="operation", name=name, inputs=inputs, role="integer_dependent", where=self.path)
            self._read(self.graph.add(node))
        owners = frozenset().union(*(node.owners for node in constants))
        # A function of a weight: of a layer that is not being called, or of no layer at all.
        weighted = name in WEIGHTED and 0 < len(constants) < len(inputs)
        call = -1
        if weighted and len(owners) == 1:
            call = self._add_call(next(iter(owners)), inputs, [tuple(t.shape) for t in outputs], implicit=True)
        plain = {key: value for key, value in bound.items() if not any(True for _ in tensors_in(value))}
        arguments = MappingProxyType(plain)
        for position, tensor in enumerate(outputs):
            role = self._role(name, inputs, tensor)
            node = Node(kind="operation", name=name, inputs=inputs, role=role, arguments=arguments, where=self.path)
            node = replace(node, position=position, pointwise=torch.Tag.pointwise in func.tags)
            if role == "constant":
                node = replace(node, kind="constant", owners=owners)
            elif call >= 0:
                node = replace(node, kind="layer", name=next(iter(owners)), call=call, inner=(name,))
            index = self._put(tensor, node, weighted=weighted and call < 0)
            if any(tensor is each for each in changed):
                self._refresh_aliases(tensor, index)

    def _role(self, name: str, inputs: tuple[int, ...], output: Tensor) -> Role:
        roles = {self.graph.nodes[i].role for i in inputs}
        if roles <= {"constant"}:
            return "constant"
        if not _is_continuous(output):
            return "integer_dependent"
        return "activation" if "activation" in roles or name in LOOKUPS else "integer_dependent"

    def _node_of(self, tensor: Tensor) -> int:
        """The node of a tensor; one not seen before is a parameter, a buffer or some other constant."""
        index = self.values.find(tensor)
        if index is not None:
            return index
        storage = storage_of(tensor)
        if storage in self._inside:
            inside = self._inside[storage]
            return self._put(tensor, Node(kind="operation", name=ESCAPED, inputs=inside, where=self.path))
        running = {id(module) for module in self.stack}
        owner = self._owners.get(storage)
        # Tied weights: a module that holds the tensor itself is using its own, not another layer's.
        if owner is None or self._holders.get(storage, set()) & running:
            return self._put(tensor, Node(kind="constant", role="constant"))
        return self._put(tensor, Node(kind="constant", role="constant", owners=frozenset({owner})))

    def _refresh_aliases(self, tensor: Tensor, index: int) -> None:
        """A write into a tensor is a write into every view that overlaps it."""
        for key, old, complete in self.values.overlapping(tensor):
            inputs = (index,) if complete else (old, index)
            roles = [self.graph.nodes[i].role for i in inputs]
            role: Role = "activation" if "activation" in roles else roles[-1]
            node = Node(kind="operation", name=WRITE, inputs=inputs, role=role, where=self.path)
            node = replace(node, shape=key[2], unbroadcast_numel=self.graph.nodes[old].unbroadcast_numel)
            self.values.replace(key, self.graph.add(node))


def _given(args: Any, kwargs: Any) -> Given:
    """What a call was given, by position or by name."""
    given = [value for value in (*args, *kwargs.values()) if value is not None]
    holding = [len(list(tensors_in(value))) for value in given]
    return Given(sum(holding), settings=0 in holding)


def _is_continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _bound(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Every argument of an operation by the name that its schema gives it, those left out with their defaults.

    What ``out=`` names is overwritten, and no operand.
    """
    bound: dict[str, Any] = {}
    for position, argument in enumerate(func._schema.arguments):
        if argument.is_out:
            continue
        if position < len(args):
            bound[argument.name] = args[position]
        else:
            bound[argument.name] = kwargs.get(argument.name, argument.default_value)
    return bound


def _number_last(name: str, bound: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """``torch.div(1, x)`` has a number in front: the same with the tensor first, under a name for that."""
    if not isinstance(bound.get("other"), Tensor) or not isinstance(bound.get("self"), (bool, int, float, complex)):
        return name, bound
    turned = {**bound, "self": bound["other"], "other": bound["self"]}
    commutes = name == "mul" or (name == "add" and bound.get("alpha") == 1)
    return name if commutes else f"r{name}", turned


class _Reads(NoFusedAttention):
    """Sees where tensors are handed to Python without an operation: ``tolist``, ``numpy`` and the like."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and note what it reads."""
        if getattr(func, "__name__", "") in OUT_OF_TORCH and args and isinstance(args[0], Tensor):
            self._recorder.take_read(args[0], func.__name__)
        return func(*args, **(kwargs or {}))
