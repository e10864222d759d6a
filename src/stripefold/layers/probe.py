"""Probe a rule on the very layer it is to be used for: scaled against unscaled, on random numbers, by what folds.

The probe never touches the layer. It builds a twin: the same type and the same attributes, but random float64
tensors on the CPU in place of every parameter and statistic. So a layer on a GPU, on the meta device or sharded over
processes is probed alike, a large one through a smaller twin, and like layers once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stripefold.algebra.comparison import relative_error
from stripefold.algebra.scale import scale_activation, shift_activation
from stripefold.errors import FoldError
from stripefold.graph.absorption import Absorption, Side
from stripefold.graph.operation_table import Change
from stripefold.layers.absorb import absorb
from stripefold.layers.rule import Rule, is_taught
from stripefold.layers.shift import shifted
from stripefold.layers.substitute import forward_with, substituted
from stripefold.modules.float64_weights import Float64Weights

ProbedSide = Literal["output", "input", "shift", "input shift"]
_SEED = 20240611
_GROWTH = (1, 2, 3)  # numbers of pixels by which examples are made larger
_LARGE = 1 << 13  # numbers in a tensor above which a smaller twin is probed
_passed: dict[tuple[object, ...], Rule] = {}


def probe(layer: nn.Module, rule: Rule, side: ProbedSide = "output") -> None:
    """Check that ``rule`` scales ``layer`` exactly, in eval mode and float64.

    Args:
        layer: any device, dtype or mode; it is only read.
        rule: what is claimed about it.
        side: the output side, or the input side (see ``Rule``); "shift": what is added to the output, into the bias;
            "input shift": what is added to the input.

    Raises:
        FoldError: the layer cannot be run on the rule's example, or scaling its tensors is not scaling its output
            (input); names the type, the measured error and the remedy.
    """
    key = _signature(layer, rule, side)
    if _passed.get(key) == rule:
        return
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            error = _measure(layer, rule, side)
    except Exception as cause:
        raise FoldError(
            f"the rule for {rule.key} cannot be probed on {layer}: {type(cause).__name__}: {cause}. {_REMEDY}"
        ) from cause
    if error > rule.tolerance:
        raise FoldError(
            f"the rule for {rule.key} is wrong for {layer}: {_CLAIM[side]} "
            f"(relative error {error:.1e}, allowed {rule.tolerance:.0e}). {_REMEDY}"
        )
    _passed[key] = rule


def probed_side(side: Side, change: Change) -> ProbedSide:
    """What to probe for a change of one side."""
    return _SIDES[side, change]


def check_affine(module: nn.Module, rule: Rule) -> None:
    """Check that a module is the affine map of single channels that its rule says, on a twin with random numbers.

    Args:
        module: any device, dtype or mode; it is only read.
        rule: of the module.

    Raises:
        FoldError: it is not, or it cannot be run.
    """
    key = ("affine", *_signature(module, rule, "output"))
    if _passed.get(key) == rule:
        return
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            generator = torch.Generator("cpu").manual_seed(_SEED)
            twin = twin_of(module, generator)
            numbers = rule.affine_map(twin)
            assert isinstance(numbers, tuple)
            # Examples are as wide as the gain, which a norm of statistics alone does not have.
            gain = {} if getattr(twin, rule.required, None) is not None else {rule.required: numbers[0]}
            x = rule.example(substituted(twin, gain), generator)[0]
            run: Callable[..., Tensor] = rule.linear_part or (lambda layer, arguments: layer(*arguments))
            expected = shift_activation(scale_activation(x, numbers[0], rule.axis), numbers[1], rule.axis)
            found = run(twin, (x.clone(),))
            error = max(_distance(found, expected), _distance(rule.leftover(twin)(found), twin(x.clone())))
    except Exception as cause:
        raise FoldError(
            f"the rule for {rule.key} cannot be probed on {module}: {type(cause).__name__}: {cause}. {_REMEDY}"
        ) from cause
    if error > rule.tolerance:
        raise FoldError(
            f"the rule for {rule.key} is wrong for {module}: its output is not a scale and a shift of its input, "
            f"followed by what it leaves behind (relative error {error:.1e}, allowed {rule.tolerance:.0e}). {_REMEDY}"
        )
    _passed[key] = rule


_CLAIM = {
    "output": "scaling its tensors is not scaling its output",
    "input": "scaling its tensors is not scaling its input",
    "shift": "adding to its bias is not adding to its output",
    "input shift": "what takes a shift of its input does not add to its input",
}
_CHANGES: dict[ProbedSide, tuple[Side, Change]] = {
    "output": ("output", "scale"),
    "input": ("input", "scale"),
    "shift": ("output", "shift"),
    "input shift": ("input", "shift"),
}
_SIDES = {each: side for side, each in _CHANGES.items()}
_TRAINED: dict[ProbedSide, Callable[[Rule, nn.Module, Tensor], Mapping[str, Tensor | None]]] = {
    "output": Rule.scaled,
    "shift": shifted,
}
_REMEDY = "Register a rule that fits with register_rule(Type, rule=Rule(...)), or leave the layer out with where=..."


def _measure(layer: nn.Module, rule: Rule, side: ProbedSide) -> float:
    """The probe on a small twin where the layer is large and the small twin runs, else on one of its size."""
    if rule.shrink is not None and any(p.numel() > _LARGE for p in _tensors(layer).values()):
        try:
            return _relative_error(layer, rule, side, rule.shrink(layer))
        except Exception:  # of any kind: a type of the user's may not be shrinkable, and then the full size decides
            pass
    return _relative_error(layer, rule, side, {})


def _relative_error(layer: nn.Module, rule: Rule, side: ProbedSide, sizes: Any) -> float:
    generator = torch.Generator("cpu").manual_seed(_SEED)
    twin = twin_of(layer, generator, sizes)
    inputs = rule.example(twin, generator)
    if len(inputs) != rule.inputs:
        raise ValueError(f"its example has {len(inputs)} inputs, and it says inputs={rule.inputs}")
    errors = [_error_on(inputs, twin, rule, side, generator)]
    for more in _GROWTH if is_taught(rule) else ():
        larger = _grown(inputs, rule, more, generator)
        if _runs(twin, larger):
            errors.append(_error_on(larger, twin, rule, side, generator))
    return max(errors)


def _grown(inputs: tuple[Tensor, ...], rule: Rule, more: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Inputs that are larger along every axis but the batch's and the channels': a layer may pad some sizes itself."""
    rank, axis = inputs[0].dim(), rule.axis_on("input") % inputs[0].dim()
    return tuple(
        torch.randn(
            [size + more * (dim not in (0, axis) and tensor.dim() == rank) for dim, size in enumerate(tensor.shape)],
            generator=generator, dtype=tensor.dtype, device="cpu",
        )
        for tensor in inputs
    )  # fmt: skip


def _runs(twin: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    try:
        twin(*_copies(inputs))
    except Exception:  # of any kind: the type may be made for one size
        return False
    return True


def _error_on(
    inputs: tuple[Tensor, ...], twin: nn.Module, rule: Rule, side: ProbedSide, generator: torch.Generator
) -> float:
    run: Callable[..., Tensor] = rule.linear_part or (lambda module, arguments: module(*arguments))
    where, change = _CHANGES[side]
    v, axis = _scale(rule.channels_on(where, twin), generator), rule.axis_on(where)
    moved = scale_activation if change == "scale" else shift_activation
    if where == "output":
        expected = moved(run(twin, _copies(inputs)), v, axis)
    else:
        expected = run(twin, (moved(inputs[0], v, axis), *inputs[1:]))
    merged = _absorbed(twin, rule, where, change, v)
    folded = _with_tensors(twin, merged)
    error = _distance(run(folded, _copies(inputs)), expected)
    # The training form must be the folded form, for this layer's own forward with everything in it.
    trained = _TRAINED[side](rule, twin, v) if side in _TRAINED else merged
    return max(error, _distance(forward_with(twin, trained, _copies(inputs), {}), folded(*_copies(inputs))))


def _absorbed(twin: nn.Module, rule: Rule, side: Side, change: Change, v: Tensor) -> Mapping[str, Tensor]:
    """The twin's tensors with a change of all channels in them, by the very code that folds."""
    weights = Float64Weights()
    part = Absorption(layer="", side=side, index=tuple(range(v.numel())), change=change)
    absorb(weights, twin, part, v, rule)
    return weights.known(twin)


def _copies(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """In-place activations may write into the input."""
    return tuple(tensor.clone() for tensor in inputs)


def _distance(value: Tensor, expected: Tensor) -> float:
    """The relative error; infinite where zeros or infinities are expected, which say nothing."""
    largest = float(expected.abs().max())
    return relative_error(value, expected) if 0 < largest < float("inf") else float("inf")


def _scale(channels: int, generator: torch.Generator) -> Tensor:
    """Scales of both signs, away from 0 and from 1 in size."""
    size = 0.25 + torch.rand(channels, generator=generator, dtype=torch.float64, device="cpu")
    return torch.where(torch.rand(channels, generator=generator, device="cpu") < 0.5, -size, size)


def twin_of(module: nn.Module, generator: torch.Generator, sizes: Any = MappingProxyType({})) -> nn.Module:
    """A copy of a module without its hooks, with random tensors of the same (or the given) shapes, in eval mode."""
    twin: nn.Module = object.__new__(type(module))
    nn.Module.__init__(twin)
    plain = {k: v for k, v in module.__dict__.items() if k not in twin.__dict__ and k != "forward"}
    twin.__dict__.update(plain)
    twin.__dict__.update({k: v for k, v in sizes.items() if isinstance(v, int)})
    for name, parameter in module._parameters.items():
        random = None if parameter is None else nn.Parameter(_random(name, parameter, generator, sizes), False)
        twin._parameters[name] = random
    for name, buffer in module._buffers.items():
        twin._buffers[name] = None if buffer is None else _random(name, buffer, generator, sizes)
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else twin_of(child, generator, {})
    twin.__dict__["training"] = False
    return twin


def _random(name: str, tensor: Tensor, generator: torch.Generator, sizes: Any) -> Tensor:
    shape = sizes.get(name, tuple(tensor.shape))
    if not tensor.is_floating_point():
        return torch.zeros(shape, dtype=tensor.dtype, device="cpu")
    if name.endswith("var"):
        return 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _with_tensors(twin: nn.Module, tensors: Any) -> nn.Module:
    """The folded twin: its own tensors replaced for good, as ``fold`` does it."""
    folded: nn.Module = object.__new__(type(twin))
    folded.__dict__.update(twin.__dict__)
    for kind in ("_parameters", "_buffers"):
        folded.__dict__[kind] = {k: tensors.get(k, t) for k, t in twin.__dict__[kind].items()}
    return folded


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    return {k: t for k, t in (*layer._parameters.items(), *layer._buffers.items()) if t is not None}


def _signature(layer: nn.Module, rule: Rule, side: ProbedSide) -> tuple[object, ...]:
    """What decides how a layer computes: its type and code, its shapes, its plain attributes, its children."""
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in _tensors(layer).items())
    simple = (bool, int, float, str, tuple, type(None))
    plain = tuple(sorted((k, repr(v)) for k, v in layer.__dict__.items() if isinstance(v, simple) and k != "training"))
    return (type(layer), type(layer).forward, rule.key, side, shapes, plain, repr(layer))
