"""Run two models on the same inputs, layer beside layer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.algebra.comparison import relative_error
from stripefold.errors import VerifyError
from stripefold.folding.outputs import compared
from stripefold.graph.record_run import describe
from stripefold.modules.example import Example, example_copy, example_to, placements, run_example
from stripefold.modules.float64 import KeepFloat64, is_float64
from stripefold.modules.foldable import Foldable
from stripefold.modules.modules import first_parameter, takes_hooks
from stripefold.modules.preserve_state import NoFusedAttention, ParametersWrittenError, on_copies, random_state_kept
from stripefold.modules.shared_state import shared_state_kept

RECORD_LIMIT = 1 << 31
"""Bytes of layer outputs that are kept for the comparison layer by layer; the model's own output always is."""


@dataclass(frozen=True, kw_only=True)
class RunOutputs:
    """What two models gave for the same inputs.

    Attributes:
        inputs: as the models took them.
        expected: path -> tensor of the first.
        found: of the other.
        layers: error of every module that both have.
    """

    inputs: Example
    expected: dict[str, Tensor]
    found: dict[str, Tensor]
    layers: dict[str, float]


class DoesNotRunError(VerifyError):
    """A model does not run on the example."""


def place(model: nn.Module, inputs: Example, dtype: torch.dtype) -> Example:
    """The inputs on the model's device, in a dtype."""
    like = first_parameter(model)
    return example_to(inputs, like.device if like is not None else torch.device("cpu"), dtype)


def run_both(model: nn.Module, other: nn.Module, inputs: Example) -> RunOutputs:
    """Run copies of both on the example as it is given, or else in the type of the first parameter.

    Raises:
        VerifyError: one does not run on the example either way.
    """
    failure: VerifyError | None = None
    for placed in placements(model, inputs):
        try:
            return on_copies(partial(_run_both, inputs=placed), model, other)
        except DoesNotRunError as error:
            failure = error
    assert failure is not None
    raise failure


def _run_both(model: nn.Module, other: nn.Module, inputs: Example) -> RunOutputs:
    common = _comparable(_layers(model), _layers(other))
    expected, recorded = _record(model, example_copy(inputs), common)
    errors: dict[str, float] = {}

    def compare(name: str, output: Tensor) -> None:
        if recorded.get(name):
            errors[name] = max(errors.get(name, 0.0), relative_error(output, recorded[name].pop(0)))

    found = _run(other, example_copy(inputs), common, compare)
    order = {name: index for index, name in enumerate(recorded)}
    layers = dict(sorted(errors.items(), key=lambda item: order[item[0]]))
    return RunOutputs(inputs=inputs, expected=expected, found=found, layers=layers)


def _record(model: nn.Module, inputs: Example, names: Any) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    recorded: dict[str, list[Tensor]] = {}
    room = RECORD_LIMIT

    def record(name: str, output: Tensor) -> None:
        nonlocal room
        room -= output.nbytes
        if room >= 0:
            recorded.setdefault(name, []).append(output.clone())

    return _run(model, inputs, names, record), recorded


def _run(model: nn.Module, inputs: Example, names: Any, see: Any) -> dict[str, Tensor]:
    layers = _layers(model)
    handles = [
        layers[name].register_forward_hook(
            lambda module, args, output, name=name: see(name, output.detach()) if isinstance(output, Tensor) else None
        )
        for name in names
    ]
    try:
        return compared(call(model, inputs))
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules worth comparing: the innermost ones, a site counting as one."""
    found: dict[str, nn.Module] = {}
    inside: str | None = None
    for name, module in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        inside = None
        if isinstance(module, Foldable):
            found[name], inside = module, f"{name}."
        elif name and takes_hooks(module) and not any(True for _ in module.children()):
            found[name] = module
    return found


def _comparable(layers: Mapping[str, nn.Module], others: Mapping[str, nn.Module]) -> list[str]:
    """Names of modules that should give the same output in both: a layer that took up a BatchNorm should not."""
    return [name for name, layer in layers.items() if name in others and _same_duty(layer, others[name])]


def _same_duty(layer: nn.Module, other: nn.Module) -> bool:
    if isinstance(layer, Foldable):
        return isinstance(other, Foldable) or type(getattr(layer, "base", None)) is type(other)
    mine, its = dict(layer.named_parameters()), dict(other.named_parameters())
    return mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in mine)


def call(model: nn.Module, inputs: Example, *, copied_from: torch.dtype | None = None) -> Any:
    """What a model returns, its random numbers put back; a float64 model computes in float64 throughout.

    Args:
        model: a copy, as ``preserve_state`` gives it.
        inputs: in its dtype, on its device.
        copied_from: the dtype of the model that this one is a float64 copy of, for messages; None: it is no copy.

    Raises:
        VerifyError: the model does not run on the inputs.
    """
    like = first_parameter(model)
    wide = like is not None and like.dtype == torch.float64 and is_float64(model)
    keep = KeepFloat64() if wide else NoFusedAttention()
    try:
        # Whatever a model draws at random, the other draws too.
        with shared_state_kept(model) if wide else nullcontext(), random_state_kept(model), keep:
            return run_example(model, inputs)
    except ParametersWrittenError:
        raise
    except Exception as error:  # a user's forward may raise anything
        raise DoesNotRunError(f"{_said(model, inputs, error)}. {_way_out(copied_from)}") from error


def _said(model: nn.Module, inputs: Example, error: Exception) -> str:
    message = (str(error).splitlines() or [""])[0].rstrip(".")
    return f"{type(model).__name__} does not run on the example {describe(inputs)}: {type(error).__name__}: {message}"


def _way_out(copied_from: torch.dtype | None) -> str:
    """What to do about a model that does not run: the example is to blame, or a dtype that is fixed in its forward."""
    if copied_from is not None:
        return (
            f"This is its copy in float64, by which {str(copied_from).removeprefix('torch.')} rounding is judged; the "
            "model itself runs. Its forward makes or keeps a tensor of a fixed dtype: register such a tensor as a "
            "buffer, make one like the values it meets (dtype=x.dtype). Or fold without the comparison: check=False"
        )
    return (
        "Give an example the model accepts: a tensor, a tuple of positional arguments or a mapping of keyword arguments"
    )
