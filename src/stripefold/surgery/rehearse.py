"""Run a model once under the recorder, on the meta device or for real, and undo everything afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.surgery.example import example_to, run_example
from stripefold.surgery.graph import Graph
from stripefold.surgery.modules import first_parameter
from stripefold.surgery.record import Recorder
from stripefold.surgery.undisturbed import copy_buffers, to_meta, undisturbed
from stripefold.surgery.values import storage_of

IsLayer = Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Failure:
    """A run that did not get through: the module path it reached and what was raised there."""

    path: str
    error: Exception


def ways_to_run(model: nn.Module) -> tuple[bool, ...]:
    """Whether to run on the meta device, in the order of trial; a model that lives there has no other way."""
    lives_on_meta = any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return (True,) if lives_on_meta else (True, False)


def rehearse(
    model: nn.Module, example: Any, *, is_layer: IsLayer, on_meta: bool
) -> tuple[Graph, tuple[str, ...]] | Failure:
    """Record one run.

    Returns:
        The graph and the dotted paths of all affine layers; or the failure, whatever the model raised.
    """
    layers = _outermost_layers(model, is_layer)
    recorder: Recorder | None = None
    try:
        with undisturbed(model):
            _stand_in(model, on_meta)
            recorder = _recorder(model, layers)
            inputs = example_to(_as_dict(example), _device(model, on_meta), None)
            # What the model warns of, it will warn of again when it is used.
            with warnings.catch_warnings(), recorder.recording():
                warnings.simplefilter("ignore")
                recorder.take_inputs(inputs)
                recorder.take_outputs(run_example(model, inputs))
            recorder.graph.tensors = _tensors_used(model, recorder)
    except Exception as error:  # a user's forward may raise anything; the caller turns it into a TraceError
        return Failure(recorder.path if recorder else "", error)
    return recorder.graph, tuple(layers)


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


def _stand_in(model: nn.Module, on_meta: bool) -> None:
    if on_meta:
        to_meta(model)
    else:
        copy_buffers(model)


def _device(model: nn.Module, on_meta: bool) -> torch.device:
    like = None if on_meta else first_parameter(model)
    if like is None:
        return torch.device("meta" if on_meta else "cpu")
    return like.device


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
    return Recorder(names, {id(layer) for layer in layers.values()}, owners, holders)


def _tensors_used(model: nn.Module, recorder: Recorder) -> dict[str, int]:
    """Which constants are parameters and buffers as they stand in the model; only inside ``undisturbed``."""
    found: dict[str, int] = {}
    for path, module in model.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            index = None if tensor is None else recorder.values.exactly(tensor)
            if index is not None and recorder.graph.nodes[index].kind == "constant":
                found[f"{path}.{key}" if path else key] = index
    return found


def _own_tensors(module: nn.Module) -> list[Tensor]:
    tensors = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in tensors if tensor is not None]
