"""A rule says, for one exact layer type, which tensors are multiplied so that its output (or input) is scaled.

Exact type, because a subclass may hide an activation or another normalisation: what is not known is refused, and the
refusal shows how to teach it (``register_rule``). Each rule is probed on the very layer before it is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from stripefold.algebra.comparison import FLOAT64_TOLERANCE
from stripefold.algebra.scale import scale_dim
from stripefold.errors import FoldError
from stripefold.graph.absorption import Side
from stripefold.graph.given import Given

ScaleFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``(layer, tensor, v) -> scaled tensor``: pure, differentiable, any dtype."""
ShiftFunction = Callable[[nn.Module, Tensor | None, Tensor], Tensor]
"""``(layer, tensor or None, shift) -> the tensor with the shift in it``, all in float64."""


@dataclass(frozen=True)
class Along:
    """The usual scale function: multiply along one axis. As a type, so that a bias is known by it.

    Attributes:
        dim: the tensor's channel axis.
    """

    dim: int

    def __call__(self, layer: nn.Module, tensor: Tensor, v: Tensor) -> Tensor:
        """``v (.) tensor``; the layer is not looked at."""
        return scale_dim(tensor, v, self.dim)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one exact layer type takes a per-channel scale.

    Attributes:
        key: qualified name of the layer type, ``module.Class``.
        norm: a normalisation: its parameters are always the cheaper side while training.
        axis: channel axis of the output, 1 or -1.
        channels: layer -> number of output channels.
        output: attribute name -> how that tensor carries a scale of the output; attributes that are None are skipped.
        input: the same for a scale of the input, or None where the layer has no exact input side.
        input_axis: channel axis of the input.
        input_channels: layer -> number of input channels.
        example: ``(layer, generator) -> inputs`` in float64, small, for the probe.
        inputs: how many tensors the example holds. Of a call that is given more, the rule says nothing.
        refuse: layer -> why this very layer cannot take a scale, or None.
        commutes: scaling the tensors equals scaling the output. False for layers with an activation inside
            (``act(v B(x))``): there the gate stands before the activation, always on the parameters.
        linear_part: ``(layer, inputs) -> output before the activation`` for the probe of such layers.
        required: the attribute that must be a tensor for the layer to have an affine part at all.
        input_refuse: layer -> why this very layer has no exact input side, or None.
        input_eval_only: the input side is exact in eval mode only (BatchNorm: batch statistics undo a scale).
        input_shift: attribute -> how that tensor takes what is added to the input; None where nothing in it does.
        input_shift_refuse: layer -> why this very layer cannot take a shift of its input (zero padding), or None.
        affine: layer -> the scale and the shift (C,) that it is in eval mode, float64, or why this one has none
            (no running statistics); None where the type is no affine map of single channels. Such a layer merges into
            its neighbours (BatchNorm-like).
        leftover: layer -> what stays in its place once it is merged: the activation that it carries.
        called: False for a layer whose tensors are used without calling it (in torch's attention).
        variant: layer -> ending of the key of the rule that holds for it, for types whose instances differ (the channel
            axis of a ``data_format``); see ``rule_for``.
        shrink: layer -> a smaller twin's shapes and integer attributes, so that the probe of a large layer is cheap.
        tolerance: relative error allowed by the probe; larger only for layers that compute in float32 whatever they
            are given.
    """

    key: str
    norm: bool
    axis: int
    channels: Callable[[nn.Module], int]
    output: Mapping[str, ScaleFunction]
    example: Callable[[nn.Module, torch.Generator], tuple[Tensor, ...]]
    input: Mapping[str, ScaleFunction] | None = None
    input_axis: int | None = None
    input_channels: Callable[[nn.Module], int] | None = None
    refuse: Callable[[nn.Module], str | None] = lambda layer: None
    commutes: bool = True
    linear_part: Callable[[nn.Module, tuple[Tensor, ...]], Tensor] | None = None
    required: str = "weight"
    input_refuse: Callable[[nn.Module], str | None] = lambda layer: None
    input_eval_only: bool = False
    input_shift: Mapping[str, ShiftFunction] | None = None
    input_shift_refuse: Callable[[nn.Module], str | None] = lambda layer: None
    affine: Callable[[nn.Module], tuple[Tensor, Tensor] | str] | None = None
    leftover: Callable[[nn.Module], nn.Module] = lambda layer: nn.Identity()
    called: bool = True
    variant: Callable[[nn.Module], str] | None = None
    shrink: Callable[[nn.Module], Mapping[str, tuple[int, ...] | int]] | None = None
    inputs: int = 1
    tolerance: float = FLOAT64_TOLERANCE

    def __reduce__(self) -> tuple[Callable[[str], Rule], tuple[str]]:
        """Pickle and deep-copy by name: a rule is code, not state."""
        return (rule_by_key, (self.key,))

    def scaled(self, layer: nn.Module, v: Tensor) -> dict[str, Tensor | None]:
        """The layer's tensors with its output scaled by ``v`` (C,), rounded once to each tensor's dtype.

        The training form, with gradients; what folds is ``absorb``, and the probe holds one against the other.
        """
        result: dict[str, Tensor | None] = {}
        for name, function in self.output.items():
            tensor = own_tensor(layer, name)
            result[name] = None if tensor is None else _cast(function(layer, tensor, v), tensor.dtype)
        return result

    def elementwise(self, layer: nn.Module) -> bool:
        """Whether it claims that the layer works on every channel by itself: one tensor takes scales of both sides.

        By what its functions give, not by which objects they are.
        """
        functions = self.output.get(self.required), (self.input or {}).get(self.required)
        tensor = getattr(layer, self.required, None)
        if None in functions or self.input_channels is None or not isinstance(tensor, Tensor):
            return False
        channels = self.channels(layer)
        # One number for each channel; a kernel of one tap reads as a convolution all the same.
        if not tensor.numel() == channels == self.input_channels(layer) or hasattr(layer, "kernel_size"):
            return False
        ones = torch.ones(tensor.shape, dtype=torch.float64, device="cpu")
        v = torch.arange(1, channels + 1, dtype=torch.float64, device="cpu")
        try:
            first, second = (function(layer, ones, v) for function in functions if function is not None)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return False
        return torch.equal(first, second)

    def affine_map(self, layer: nn.Module) -> tuple[Tensor, Tensor] | str | None:
        """The layer in eval mode as ``scale x + shift``, two (C,) vectors, float64; why not; None for other types.

        A gain and an offset of every channel are one by themselves, unless a normalisation has them.
        """
        if self.affine is not None:
            return self.affine(layer)
        if self.norm or len(self.output) != 2 or not self.elementwise(layer):
            return None
        offset = next(name for name in self.output if name != self.required)
        gain, shift = getattr(layer, self.required), getattr(layer, offset, None)
        gain = gain.double().flatten()
        return gain, torch.zeros_like(gain) if shift is None else shift.double().flatten()

    def side(self, side: Side) -> Mapping[str, ScaleFunction]:
        """The scale functions of one side; none where there is no such side."""
        return self.output if side == "output" else self.input or {}

    def axis_on(self, side: Side) -> int:
        """The channel axis of one side; that of the output where the rule names none of the input."""
        return self.axis if side == "output" or self.input_axis is None else self.input_axis

    def channels_on(self, side: Side, layer: nn.Module) -> int:
        """The number of channels of one side of a layer, likewise."""
        return (self.channels if side == "output" or self.input_channels is None else self.input_channels)(layer)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast where needed: asking first is a third of the cost of a cast that does nothing, and this runs every step."""
    value: object = tensor
    return tensor.to(dtype) if isinstance(value, fx.Proxy) or tensor.dtype != dtype else tensor


def own_tensor(layer: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer of the layer; the tensor itself also while ``torch.fx`` traces, since rules read shapes."""
    value: object = getattr(layer, name, None)
    if isinstance(value, fx.Proxy):
        return layer._parameters.get(name, layer._buffers.get(name))
    return value if isinstance(value, Tensor) else None


_TABLES = ("rules_torch", "rules_timm", "rules_transformers", "rules_own")
_rules: dict[str, Rule] = {}
_taught: set[str] = set()


def type_key(layer_type: type) -> str:
    """``module.Class``: rules for optional libraries are known by name, so nothing is imported for them."""
    return f"{layer_type.__module__}.{layer_type.__qualname__}"


def rule_by_key(key: str) -> Rule:
    """The registered rule of that qualified type name (used when unpickling).

    Raises:
        FoldError: nothing is registered under that name in this process.
    """
    if key not in known_rules():
        raise FoldError(f"no rule for {key} in this process: call register_rule for it before loading")
    return _rules[key]


def add_rule(rule: Rule, *aliases: str) -> Rule:
    """Register a rule under its key and under further type names that behave the same."""
    for key in (rule.key, *aliases):
        _rules[key] = replace(rule, key=key)
    return rule


def known_rules() -> Mapping[str, Rule]:
    """Every registered rule by key; stripefold's own are registered at the first look, by importing their tables."""
    for table in _TABLES:
        importlib.import_module(f"stripefold.layers.{table}")
    return _rules


def rule_for_type(layer_type: type) -> Rule | None:
    """The rule of exactly this type; subclasses do not inherit it."""
    return known_rules().get(type_key(layer_type))


def rule_for(layer: nn.Module) -> Rule | None:
    """The rule of exactly this layer's type, or the rule a site carries for its layer, or None."""
    stored = layer.__dict__.get("rule")
    if isinstance(stored, Rule):
        return stored
    rule = rule_for_type(type(layer))
    return rule if rule is None or rule.variant is None else rule_by_key(rule.key + rule.variant(layer))


def register_rule(
    layer_type: type[nn.Module], *, like: type[nn.Module] | None = None, rule: Rule | None = None
) -> None:
    """Teach stripefold a layer type of your own.

    Args:
        layer_type: the exact type; subclasses of it need their own call.
        like: a type that has a rule and computes the same way (same attribute names, same axes): all that its rule
            says holds for this type, too.
        rule: a full ``Rule`` instead.

    Raises:
        FoldError: neither or both given, not a module type, or ``like`` has no rule.

    The rule is probed on each layer it is used for, on inputs of several sizes: a wrong registration is refused there,
    with the measured error.
    """
    if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
        raise FoldError(f"register_rule needs an nn.Module type, got {layer_type!r}")
    if (like is None) == (rule is None):
        raise FoldError(f"register_rule({layer_type.__name__}, ...) needs exactly one of like= and rule=")
    if like is not None:
        rule = rule_for_type(like)
        if rule is None:
            raise FoldError(f"register_rule({layer_type.__name__}, like={like.__name__}): {like.__name__} has no rule")
    if not isinstance(rule, Rule):
        raise FoldError(f"register_rule({layer_type.__name__}, rule=...): expected a Rule, got {type(rule).__name__}")
    key = type_key(layer_type)
    variants = [each for each in known_rules().values() if each.key.startswith(f"{rule.key}:")]
    for known in (rule, *variants):
        _taught.add(add_rule(replace(known, key=key + known.key[len(rule.key) :])).key)


def is_taught(rule: Rule) -> bool:
    """Whether a rule is for a type that stripefold was taught, whose code it does not know."""
    return rule.key in _taught


def given_at_most(rule: Rule) -> Given:
    """What a call may be given for a rule to hold: the tensors that it was probed with.

    Other arguments change what a type of somebody else's does; those of the types that stripefold knows (the
    ``output_size`` of a transposed convolution) do not touch what a rule says.
    """
    return Given(rule.inputs, settings=not is_taught(rule))
