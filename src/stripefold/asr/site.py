"""The wrapper around one affine layer: the layer, its gates, and the effective tensors others may read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from stripefold.algebra.linear import scaled_linear
from stripefold.algebra.scale import scale_activation
from stripefold.asr.gate import DynamicGate, StaticGate
from stripefold.errors import FoldError
from stripefold.folding.refusal import refusal_under, tied_to
from stripefold.folding.rule import Along, Rule
from stripefold.folding.substitute import SUBSTITUTION_COMPILES, forward_with, has_call_hooks
from stripefold.surgery.computed import computed
from stripefold.surgery.foldable import Foldable, FoldNote
from stripefold.surgery.modules import move_call_hooks

_OWN = frozenset({"base", "gates", "rule", "training", "channels"})


class Site(Foldable):
    """``y = v (.) B(x)`` with B the user's layer and v the product of the static gates.

    ``weight``, ``bias`` and whatever else the rule scales read as the *effective* tensors, because callers such as
    ``nn.MultiheadAttention`` use them without calling the layer. Every other attribute is the layer's own, for reading
    and for writing.

    Args:
        base: the layer; its hooks move to the site and back again at fold.
        rule: how it is scaled. Kept for good: the layer's class may change under it (SyncBatchNorm, FSDP2), its
            tensors do not.
    """

    def __init__(self, base: nn.Module, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self.channels = rule.channels(base)
        self.base = base
        self.gates = nn.ModuleList()
        self.training = base.training  # not train(): the layer's own children keep their flags

    def take_hooks_(self) -> None:
        """Move the layer's hooks here: from now on the site is what is called."""
        move_call_hooks(self.base, self)

    @property
    def static_gates(self) -> list[StaticGate]:
        """The gates that fold."""
        return [gate for gate in self._modules["gates"] if isinstance(gate, StaticGate)]  # type: ignore[union-attr]

    @property
    def dynamic_gates(self) -> list[DynamicGate]:
        """The gates that depend on the input and stay."""
        return [gate for gate in self._modules["gates"] if isinstance(gate, DynamicGate)]  # type: ignore[union-attr]

    def scale(self, dtype: torch.dtype | None = None) -> Tensor | None:
        """The product of the static gates, shape (C,), or None without any (paper: delta repeats)."""
        v: Tensor | None = None
        for gate in self.static_gates:
            v = gate(dtype) if v is None else v * gate(dtype)
        return v

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The scaled layer; shapes are the layer's own."""
        base = self._modules["base"]
        assert base is not None
        v: Tensor | None = None
        dynamic: list[DynamicGate] = []
        for gate in self._modules["gates"]:  # type: ignore[union-attr]  # once, since this runs at every step
            if isinstance(gate, DynamicGate):
                dynamic.append(gate)
            else:
                v = gate() if v is None else v * gate()
        if v is None:
            output = base(*args, **kwargs)
        elif self._on_activation(base, args):
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

    def _on_activation(self, base: nn.Module, args: tuple[Any, ...]) -> bool:
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

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        # A layer's own __deepcopy__ (parametrized ones have it) would copy the layer and lose the gates.
        if name in modules or name == "base" or "base" not in modules or name.startswith("__"):
            return super().__getattr__(name)
        base = modules["base"]
        scaled = self.rule.output.get(name)
        tensor = getattr(base, name)
        if scaled is None or tensor is None:
            return tensor
        v = self.scale()
        if v is not None:
            return computed(scaled(base, tensor, v).to(tensor.dtype))
        # A tensor of this type keeps torch's fused fast paths away, which would pass dynamic attention by.
        return computed(tensor) if self.dynamic_gates else tensor

    def __setattr__(self, name: str, value: Any) -> None:
        base = self.__dict__.get("_modules", {}).get("base")
        if base is None or name in _OWN or name.startswith("_") or not hasattr(base, name):
            super().__setattr__(name, value)
        else:
            setattr(base, name, value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept the backbone's own keys: ``x.weight`` loads into ``x.base.weight``, the gates stay as they are."""
        own = [key for key in state_dict if key.startswith(prefix)]
        plain = [key for key in own if not key[len(prefix) :].startswith(("base.", "gates."))]
        if plain:
            for key in plain:
                state_dict[f"{prefix}base.{key[len(prefix) :]}"] = state_dict.pop(key)
            for key, tensor in self.gates.state_dict(prefix=f"{prefix}gates.").items():
                state_dict.setdefault(key, tensor)
        super()._load_from_state_dict(state_dict, prefix, *args)

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
            reason = refusal_under(base, self.rule) or self._unwritable(base)
            reason = reason or tied_to(base, self.rule, f"{name}.base" if name else "base", owners)
            if reason is not None:
                raise FoldError(f"cannot fold the gate on {name!r}: {reason}")
            with torch.no_grad():
                self._check_products(name, base, self._checked_scale(name))
            kinds = " x ".join(gate.attention.name for gate in self.static_gates)
            notes.insert(0, FoldNote(name=name, kind=kinds, folded=True, why=f"into {type(base).__name__}"))
        return notes

    def _unwritable(self, base: nn.Module) -> str | None:
        """Why a tensor cannot be written in place, or None: a fold that stops halfway would leave the model broken."""
        for key in self.rule.output:
            tensor = getattr(base, key, None)
            if tensor is None:
                continue
            if tensor.is_inference() and not torch.is_inference_mode_enabled():
                return f"its {key!r} was made under torch.inference_mode and is read-only: use fold, which copies"
            if any(step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True)):
                return f"its {key!r} is an expanded tensor, one number for many channels: give it memory of its own"
        return None

    def _check_products(self, name: str, base: nn.Module, v: Tensor) -> None:
        key = self.rule.overflowing(base, v)
        if key is not None:
            raise FoldError(
                f"cannot fold the gate on {name!r}: {key} overflows {getattr(base, key).dtype} (largest scale "
                f"{v.abs().max():.3g}). Fold in a wider dtype: model.float()"
            )

    def _checked_scale(self, name: str) -> Tensor:
        v = self.scale(torch.float64)
        assert v is not None
        if v.is_meta:
            raise FoldError(
                f"cannot fold the gate on {name!r}: the model is on the meta device and has no numbers. Fill it first: "
                "model.to_empty(device=...) and load_state_dict"
            )
        if not bool(v.isfinite().all()):
            bad = (~v.isfinite()).nonzero().flatten().tolist()
            raise FoldError(
                f"cannot fold the gate on {name!r}: its scale is not finite in {len(bad)} of {self.channels} channels "
                f"(first: {bad[0]}). Training diverged or psi was overwritten; go back to a good checkpoint"
            )
        return v

    def is_at_start(self) -> bool:
        """See ``Foldable``: True if no static gate has moved."""
        return bool(self.static_gates) and all(gate.is_at_start() for gate in self.static_gates)

    def folded_(self) -> nn.Module:
        """Fold the static gates into the layer; the layer is returned, or the site if dynamic attention stays on it."""
        base = self._modules["base"]
        assert base is not None
        with torch.no_grad():
            v = self.scale(torch.float64)
            if v is not None:
                self.rule.scale_(base, v)
        return self.without_static_gates_()

    def without_static_gates_(self) -> nn.Module:
        """Drop the static gates as they are: what folding ends with, and what ``detach`` is."""
        if self.dynamic_gates:
            self.gates = nn.ModuleList(self.dynamic_gates)
            return self
        base = self._modules["base"]
        assert base is not None
        move_call_hooks(self, base)
        return base


def _output_elements(base: nn.Module, x: Tensor, channels: int) -> int:
    """Elements of the output: exact for linear layers, for convolutions from the stride (padding is left out)."""
    elements = x.numel() * channels
    stride = getattr(base, "stride", None)
    if not isinstance(stride, tuple):
        return elements // max(1, x.shape[-1])
    for step in stride:
        elements = elements * step if getattr(base, "transposed", False) else elements // step
    return elements // max(1, int(getattr(base, "in_channels", 1)))
