"""Overrides gates with constants by forward hooks; on exit the model is as it was.

This is the cheap way to ask what baking a gate would cost, and it shares no code with the surgery, so that the one can
be checked against the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from stripefold.errors import BakeError
from stripefold.modules.tensors import tensors_in
from stripefold.stripe.discover import ChannelGate

Blend = Callable[[str, Tensor, Tensor], Tensor]
"""(gate, what a module returned, what it returns with the constant) -> what it is to return"""


@contextmanager
def override_gates(
    model: nn.Module,
    gates: Sequence[ChannelGate],
    constants: Mapping[str, Tensor],
    blend: Blend | None = None,
) -> Iterator[nn.Module]:
    """Inside, some gates of the model give constants instead of what they compute.

    Gradients reach the constants. The attention modules still run, and what they compute is dropped.

    Args:
        model: the model that was discovered.
        gates: what was discovered (``Discovery.gates``).
        constants: gate -> v (C,), any dtype; the other gates stay dynamic.
        blend: for a gate on its way to its constant: what stands between the two; None: the constant.

    Raises:
        BakeError: an unknown gate, a constant of another length, or a gate that no module returns.
    """
    known = {gate.name: gate for gate in gates}
    for name, v in constants.items():
        if name not in known:
            raise BakeError(f"no channel gate is called {name!r}")
        _check(known[name], v)
    calls: Counter[str] = Counter()
    handles = [model.register_forward_pre_hook(lambda module, args: calls.clear(), prepend=True)]
    try:
        for name, v in constants.items():
            handles += _hooks(model, known[name], v, calls, blend or _constant)
        yield model
    finally:
        for handle in handles:
            handle.remove()


def can_hold(gate: ChannelGate) -> bool:
    """Whether a hook can put a constant in a gate's place: a module returns the gate, or is the whole attention."""
    return gate.source is not None or gate.tail is not None or (gate.whole and bool(gate.where))


def summand_of(gate: ChannelGate, like: Tensor) -> Tensor:
    """b (C,) of an affine gate; zeros where nothing is known of it.

    Args:
        gate: affine.
        like: tells device and dtype.
    """
    return like.new_tensor(gate.summand) if gate.summand else like.new_zeros(gate.channels)


def _check(gate: ChannelGate, v: Tensor) -> None:
    if tuple(v.shape) != (gate.channels,):
        raise BakeError(f"the constant for {gate.name!r} has shape {tuple(v.shape)}, expected ({gate.channels},)")
    if not can_hold(gate):
        raise BakeError(
            f"no module returns the gate {gate.name!r}: {gate.where or 'the model'!r} computes it in its own forward, "
            "where no hook reaches. Leave it out, or let a module of its own compute it"
        )


def _constant(name: str, dynamic: Tensor, constant: Tensor) -> Tensor:
    return constant


def _hooks(model: nn.Module, gate: ChannelGate, v: Tensor, calls: Counter[str], blend: Blend) -> list[Any]:
    """A hook on the module that returns the gate; without one, the whole attention's output is computed anew."""
    if gate.source is not None and not gate.affine:
        key = f"source {gate.name}"
        which = gate.source_call, gate.source_calls
        hook = _counted(calls, key, which, lambda args, output: _replaced(gate, output, v, blend))
        return [model.get_submodule(gate.source).register_forward_hook(hook)]
    if gate.tail is not None and not gate.whole:  # an affine gate is one
        tail = gate.tail
        which = tail.call, tail.calls
        hook = _counted(
            calls, f"tail {gate.name}", which, lambda args, output: _replaced(gate, output, tail.before(v), blend)
        )
        return [model.get_submodule(tail.module).register_forward_hook(hook)]
    module = model.get_submodule(gate.where)
    kept: list[Tensor] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        # Before the call, and of a copy that autograd may keep: an attention may write into its input.
        x = next(tensors_in((args, kwargs))).clone()
        scaled = x * _along(v, x, gate.given_axis)
        kept[:] = [scaled + _along(summand_of(gate, v), x, gate.given_axis) if gate.affine else scaled]

    def held(args: Any, output: Tensor) -> Tensor:
        value = blend(gate.name, output, kept[0].to(output.dtype))
        if gate.read_on:  # the model goes on with what was written into the input
            next(tensors_in(args)).copy_(value)
        return value

    which = gate.where_call, gate.where_calls
    after = _counted(calls, f"where {gate.name}", which, held)
    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]


def _counted(
    calls: Counter[str], key: str, which: tuple[int, int], value: Callable[[Any, Tensor], Tensor]
) -> Callable[[nn.Module, Any, Any], Any]:
    """A forward hook that acts on one of so many calls of a module within a run of the model.

    The count goes round, because not every run starts with a call of the model: ``model.forward_features(x)`` does not.
    """
    call, of = which

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        calls[key] += 1
        return value(args, output) if (calls[key] - 1) % of == call else None

    return hook


def _replaced(gate: ChannelGate, output: Any, v: Tensor, blend: Blend) -> Tensor:
    if not isinstance(output, Tensor) or output.shape[1:].numel() != v.numel():
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BakeError(
            f"{gate.source or gate.where!r} returned {shape}, not one gate of {v.numel()} channels per sample"
        )
    # A copy, because the code behind may write into the gate.
    constant = v.to(output.device, output.dtype).reshape(1, *output.shape[1:]).expand_as(output).clone()
    return blend(gate.name, output, constant)


def _along(v: Tensor, x: Tensor, axis: int) -> Tensor:
    if axis >= x.dim() or x.shape[axis] != v.numel():
        raise BakeError(f"a feature map of shape {tuple(x.shape)} has no {v.numel()} channels on axis {axis}")
    return v.to(x.device).reshape(-1, *(1,) * (x.dim() - 1 - axis))
