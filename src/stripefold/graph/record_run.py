"""Run a copy of a model once under the recorder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from stripefold.graph.graph import Graph
from stripefold.graph.recorder import Recorder
from stripefold.modules.example import placements, run_example
from stripefold.modules.preserve_state import ParametersWrittenError, on_copies
from stripefold.modules.tensors import storage_of

IsLayer = Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Failure:
    """A run that did not get through: the module path it reached and what was raised there."""

    path: str
    error: Exception


@dataclass(frozen=True)
class RecordedRun:
    """A recorded run: its graph, the dotted paths of all affine layers, whether it writes to the model's parameters."""

    graph: Graph
    layers: tuple[str, ...]
    writes_parameters: bool = False


def record_run(model: nn.Module, example: Any, *, is_layer: IsLayer) -> RecordedRun | Failure:
    """Record one run of a copy; a failure is whatever the model raised on the last way to place the example."""
    tries: list[None] = []
    paths = list(_outermost_layers(model, is_layer))

    def record(copied: nn.Module, inputs: Any) -> RecordedRun | Failure:
        tries.append(None)
        return _record(copied, inputs, {path: copied.get_submodule(path) for path in paths})

    found: RecordedRun | Failure | None = None
    for inputs in placements(model, _as_dict(example)):
        tries.clear()
        found = on_copies(partial(record, inputs=inputs), model)
        if not isinstance(found, Failure):
            return replace(found, writes_parameters=len(tries) > 1)
    assert found is not None
    return found


def _record(model: nn.Module, inputs: Any, layers: Mapping[str, nn.Module]) -> RecordedRun | Failure:
    recorder = _recorder(model, layers)
    tensors = _tensors_of(model)  # before the run, which may put others in their places
    try:
        recorder.take_inputs(inputs)
        with recorder.recording(model):
            outputs = run_example(model, inputs)
        recorder.take_outputs(outputs)
        recorder.take_kept()  # while the outputs are there, so that what they hold in ways of their own is seen, too
    except ParametersWrittenError:
        raise
    except Exception as error:  # a user's forward may raise anything; the caller turns it into a TraceError
        return Failure(recorder.path, error)
    recorder.graph.tensors = _tensors_used(tensors, recorder)
    return RecordedRun(recorder.graph, tuple(layers))


def describe(example: Any) -> str:
    """The shapes and types of an example, for messages."""
    if isinstance(example, Tensor):
        return f"{tuple(example.shape)} {str(example.dtype).removeprefix('torch.')}"
    if isinstance(example, Mapping):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in example.items()) + "}"
    if isinstance(example, (tuple, list)):
        return "(" + ", ".join(describe(value) for value in example) + ")"
    if hasattr(example, "shape"):  # an array of another library: its numbers would fill the screen
        return f"{type(example).__module__.partition('.')[0]}.{type(example).__name__} of shape {tuple(example.shape)}"
    return repr(example)


def _as_dict(example: Any) -> Any:
    return dict(example) if isinstance(example, Mapping) else example


def _outermost_layers(model: nn.Module, is_layer: IsLayer) -> dict[str, nn.Module]:
    """The affine layers by the first of their paths; what is inside one is a part of it."""
    found: dict[str, nn.Module] = {}
    inner: set[int] = set()
    for name, module in model.named_modules():
        if id(module) not in inner and is_layer(module):
            found[name] = module
            inner.update(id(part) for part in module.modules())
    return found


def _recorder(model: nn.Module, layers: Mapping[str, nn.Module]) -> Recorder:
    names = {id(module): name for name, module in model.named_modules()}
    holders: dict[int, set[int]] = {}
    for module in model.modules():
        for tensor in _own_tensors(module):
            holders.setdefault(storage_of(tensor), set()).add(id(module))
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        for module in layer.modules():
            for tensor in _own_tensors(module):
                owners.setdefault(storage_of(tensor), name)
    return Recorder(names, list(layers.values()), owners, holders)


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by its dotted path."""
    return {
        f"{path}.{key}" if path else key: tensor
        for path, module in model.named_modules()
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def _tensors_used(tensors: Mapping[str, Tensor], recorder: Recorder) -> dict[str, int]:
    """Which constants are parameters and buffers as they stand in the model."""
    found: dict[str, int] = {}
    for path, tensor in tensors.items():
        index = recorder.values.exactly(tensor)
        if index is not None and recorder.graph.nodes[index].kind == "constant":
            found[path] = index
    return found


def _own_tensors(module: nn.Module) -> list[Tensor]:
    tensors = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in tensors if tensor is not None]
