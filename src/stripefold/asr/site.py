"""The wrapper around one affine layer: the layer, its gates, and the effective tensors others may read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from stripefold.algebra.linear import scaled_linear
from stripefold.algebra.rounding import FOLD_WIDER
from stripefold.algebra.scale import scale_activation, shift_activation
from stripefold.asr.gate import DynamicGate
from stripefold.asr.gated import Gated, check_finite
from stripefold.errors import FoldError
from stripefold.layers.absorb import absorb_scale, absorb_shift, misfit_of
from stripefold.layers.accepts import unwritable
from stripefold.layers.refusal import refusal_under, tied_to
from stripefold.layers.rule import Along, Rule, is_taught
from stripefold.layers.shift import shift_key, shifted
from stripefold.layers.substitute import SUBSTITUTION_COMPILES, forward_with, has_call_hooks
from stripefold.modules.computed import computed
from stripefold.modules.float64_weights import Float64Weights
from stripefold.modules.foldable import Foldable, FoldNote


class Site(Gated):
    """``y = v (.) B(x) + a`` with B the user's layer, v the product and a the sum of its static gates.

    Scales come first and what is added last, in whichever order they were attached.

    ``weight``, ``bias`` and whatever else the rule scales read as the *effective* tensors, because callers such as
    ``nn.MultiheadAttention`` use them without calling the layer. Every other attribute is the layer's own, for reading
    and for writing.

    Args:
        base: the layer; its hooks move to the site and back again at fold.
        rule: how it is scaled. Kept for good: the layer's class may change under it (SyncBatchNorm, FSDP2), its
            tensors do not.
    """

    own = Gated.own | {"rule", "channels"}

    def __init__(self, base: nn.Module, rule: Rule) -> None:
        super().__init__(base)
        self.rule = rule
        self.channels = rule.channels(base)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The scaled layer; shapes are the layer's own."""
        base = self._modules["base"]
        assert base is not None
        v: Tensor | None = None
        a: Tensor | None = None
        dynamic: list[DynamicGate] = []
        for gate in self._modules["gates"]:  # type: ignore[union-attr]  # once, since this runs at every step
            if isinstance(gate, DynamicGate):
                dynamic.append(gate)
            elif gate.adds:
                a = gate() if a is None else a + gate()
            else:
                v = gate() if v is None else v * gate()
        if a is not None:
            output = self._shifted_forward(base, (v, a), args, kwargs)
        elif v is None:
            output = base(*args, **kwargs)
        elif self._on_activation(base, args, kwargs):
            output = scale_activation(base(*args, **kwargs), v, self.rule.axis)
        else:
            output = self._scaled_forward(base, v, args, kwargs)
        for gate in dynamic:
            output = gate(output)
        return output

    def _scaled_forward(self, base: nn.Module, v: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer with scaled parameters; a plain linear layer without a scaled copy of its weight kept for later."""
        lean = type(base).forward is nn.Linear.forward and self.rule.output.get("weight") == Along(0)
        lean = lean and len(args) == 1 and torch.is_grad_enabled()
        if lean and not (torch.compiler.is_compiling() or torch._C._is_tracing() or kwargs or has_call_hooks(base)):
            return scaled_linear(args[0], base.weight, base.bias, v)  # type: ignore[arg-type]
        return forward_with(base, self.rule.scaled(base, v), args, kwargs)

    def _shifted_forward(
        self, base: nn.Module, gates: tuple[Tensor | None, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """``v (.) B(x) + a``, with the bias as the side that takes a wherever the weight is the one that takes v."""
        v, a = gates
        if self._on_activation(base, args, kwargs):
            output = base(*args, **kwargs)
            output = output if v is None else scale_activation(output, v, self.rule.axis)
            return shift_activation(output, a, self.rule.axis)
        tensors = {} if v is None else self.rule.scaled(base, v)
        return forward_with(base, tensors | shifted(self.rule, base, a, v), args, kwargs)

    def _on_activation(self, base: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the output is the cheaper side to scale.

        Never for normalisations. For a convolution or linear layer when the weight has more elements than the output;
        not decided while compiling, exporting or jit-tracing, where the batch size is symbolic. Under ``torch.fx`` the
        layer must stay a leaf call, so there the output is scaled; so it is where an older torch compiles. A branch
        block has no weight until it is folded.
        """
        if isinstance(base, Foldable):
            return True  # a branch block: its effective weight is computed, there is nothing to put a scaled one into
        if not args or not self.rule.commutes:
            return False
        if is_taught(self.rule) and len(args) + len(kwargs) > self.rule.inputs:
            return False  # what another argument adds to the output is not scaled by what folds
        if isinstance(args[0], fx.Proxy):
            return True
        if torch.compiler.is_compiling():
            return not SUBSTITUTION_COMPILES
        if self.rule.norm or torch._C._is_tracing() or not isinstance(args[0], Tensor):
            return False
        stride = getattr(base, "stride", None)
        if isinstance(stride, tuple) and args[0].dim() != len(stride) + 2:
            return False  # no batch axis: the channels are not where the rule says
        weight = base._parameters.get("weight")
        return weight is not None and weight.numel() > _output_elements(base, args[0], self.channels)

    def effective_tensor(self, base: nn.Module, name: str, tensor: Any) -> Any:
        """The effective tensor where the gates change one."""
        scaled = self.rule.output.get(name)
        if scaled is None:
            return tensor
        a = self.shift() if name == shift_key(self.rule) else None
        if tensor is None and a is None:
            return tensor
        v = self.scale()
        if a is not None:
            return computed(shifted(self.rule, base, a, v)[name])
        if v is not None:
            return computed(scaled(base, tensor, v).to(tensor.dtype))
        # A tensor of this type keeps torch's fused fast paths away, which would pass dynamic attention by.
        return computed(tensor) if self.dynamic_gates else tensor

    def extra_repr(self) -> str:
        """The width."""
        return f"channels={self.channels}"

    def check_fold(self, name: str, owners: Mapping[int, list[str]]) -> list[FoldNote]:
        """See ``Foldable``; forms scaled tensors only where they could overflow."""
        base = self._modules["base"]
        assert base is not None
        stays = "depends on the input and stays"
        notes = [
            FoldNote(name=name, kind=f"dynamic {gate.attention.name}", folded=False, why=stays)
            for gate in self.dynamic_gates
        ]
        if self.static_gates:
            reason = refusal_under(base, self.rule) or unwritable(base, self.rule.output)
            reason = reason or tied_to(base, self.rule.output, f"{name}.base" if name else "base", owners)
            if reason is not None:
                raise FoldError(f"cannot fold the gate on {name!r}: {reason}")
            with torch.no_grad():
                self._check_products(name, base)
            notes.insert(0, FoldNote(name=name, kind=self.kinds, folded=True, why=f"into {type(base).__name__}"))
        return notes

    def _check_products(self, name: str, base: nn.Module) -> None:
        v, a = self.scale(torch.float64), self.shift(torch.float64)
        check_finite(name, v)
        check_finite(name, a, what="shift")
        misfit = misfit_of(base, self.rule, v, None if isinstance(base, Foldable) else a)
        if misfit is not None:
            largest = max(float(each.abs().max()) for each in (v, a) if each is not None)
            raise FoldError(f"cannot fold the gate on {name!r}: {misfit} (largest scale {largest:.3g}). {FOLD_WIDER}")

    @property
    def gained_key(self) -> str | None:
        """See ``Foldable``: something is added, and the layer has no bias yet to take it."""
        key = shift_key(self.rule)
        adds = any(gate.adds for gate in self.static_gates)
        return key if adds and key is not None and getattr(self._modules["base"], key) is None else None

    @torch.no_grad()
    def folded_(self, weights: Float64Weights) -> nn.Module:
        """Fold the static gates into the layer; the layer is returned, or the site if dynamic attention stays on it."""
        base = self._modules["base"]
        assert base is not None
        v, a = self.scale(torch.float64), self.shift(torch.float64)
        if v is not None:
            absorb_scale(weights, base, self.rule, v)
        if a is not None:
            absorb_shift(weights, base, self.rule, a)
        return self.without_static_gates_()


def _output_elements(base: nn.Module, x: Tensor, channels: int) -> int:
    """Elements of the output: exact for linear layers, for convolutions from the stride (padding is left out)."""
    elements = x.numel() * channels
    stride = getattr(base, "stride", None)
    if not isinstance(stride, tuple):
        return elements // max(1, x.shape[-1])
    for step in stride:
        elements = elements * step if getattr(base, "transposed", False) else elements // step
    return elements // max(1, int(getattr(base, "in_channels", 1)))
