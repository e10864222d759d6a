"""What every module with gates has in common: the user's module, the gates on it, and reading through to the former."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stripefold.asr.gate import DynamicGate, StaticGate
from stripefold.errors import FoldError
from stripefold.modules.foldable import Foldable
from stripefold.modules.modules import move_call_hooks
from stripefold.modules.stand_in import StandIn


class Gated(StandIn, Foldable):
    """A module of the user's, ``base``, with gates on it; abstract.

    Every attribute but the gates is the module's own, for reading and for writing; what the gates change of a tensor,
    a subclass says in ``effective_tensor``.

    Args:
        base: the module; its hooks move here (``take_hooks_``) and back again at fold.
    """

    own: ClassVar[frozenset[str]] = frozenset({"base", "gates", "training"})
    """Attributes that are written here and not on the base."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.gates = nn.ModuleList()
        self.training = base.training  # not train(): the module's own children keep their flags

    @property
    def stands_for(self) -> nn.Module | None:
        """See ``StandIn``: the base."""
        base: nn.Module | None = self.__dict__.get("_modules", {}).get("base")
        return base

    def take_hooks_(self) -> None:
        """Move the base's hooks here: from now on this module is what is called."""
        move_call_hooks(self.base, self)

    @property
    def static_gates(self) -> list[StaticGate]:
        """The gates that fold."""
        return [gate for gate in self._modules["gates"] if isinstance(gate, StaticGate)]  # type: ignore[union-attr]

    @property
    def dynamic_gates(self) -> list[DynamicGate]:
        """The gates that depend on the input and stay."""
        return [gate for gate in self._modules["gates"] if isinstance(gate, DynamicGate)]  # type: ignore[union-attr]

    @property
    def kinds(self) -> str:
        """The static gates in words, in the order in which they count: scales first, what is added last."""
        gates = self.static_gates
        scales = " x ".join(gate.attention.name for gate in gates if not gate.adds)
        return " + ".join([*([scales] if scales else []), *(gate.attention.name for gate in gates if gate.adds)])

    def scale(self, dtype: torch.dtype | None = None) -> Tensor | None:
        """The product of the static gates that multiply, shape (C,), or None without any (paper: delta repeats)."""
        v: Tensor | None = None
        for gate in self.static_gates:
            if not gate.adds:
                v = gate(dtype) if v is None else v * gate(dtype)
        return v

    def shift(self, dtype: torch.dtype | None = None) -> Tensor | None:
        """The sum of the static gates that add, shape (C,), or None without any."""
        a: Tensor | None = None
        for gate in self.static_gates:
            if gate.adds:
                a = gate(dtype) if a is None else a + gate(dtype)
        return a

    def effective_tensor(self, base: nn.Module, name: str, tensor: Tensor) -> Any:
        """What a tensor of the base reads as from outside."""
        del base, name
        return tensor

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        # A layer's own __deepcopy__ (parametrized ones have it) would copy the layer and lose the gates.
        if name in modules or name == "base" or "base" not in modules or name.startswith("__"):
            return super().__getattr__(name)
        base = modules["base"]
        return self.effective_tensor(base, name, getattr(base, name))

    def __setattr__(self, name: str, value: Any) -> None:
        base = self.__dict__.get("_modules", {}).get("base")
        if base is None or name in self.own or name.startswith("_") or not hasattr(base, name):
            super().__setattr__(name, value)
        else:
            setattr(base, name, value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept the backbone's own keys: ``x.weight`` loads into ``x.base.weight``, the gates stay as they are.

        A base without any tensor (a pooling) has no such keys: there nothing at all is what a backbone's file says.
        """
        own = [key for key in state_dict if key.startswith(prefix)]
        plain = [key for key in own if not key[len(prefix) :].startswith(("base.", "gates."))]
        if plain or not (own or self.base.state_dict()):
            for key in plain:
                state_dict[f"{prefix}base.{key[len(prefix) :]}"] = state_dict.pop(key)
            for key, tensor in self.gates.state_dict(prefix=f"{prefix}gates.").items():
                state_dict.setdefault(key, tensor)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def is_at_start(self) -> bool:
        """See ``Foldable``: True if no static gate has moved."""
        return bool(self.static_gates) and all(gate.is_at_start() for gate in self.static_gates)

    def without_static_gates_(self) -> nn.Module:
        """Drop the static gates as they are: what folding ends with, and what ``detach`` is."""
        if self.dynamic_gates:
            self.gates = nn.ModuleList(self.dynamic_gates)
            return self
        base = self._modules["base"]
        assert base is not None
        move_call_hooks(self, base)
        return base


def check_finite(name: str, v: Tensor | None, *, what: str = "scale", of: str = "channels") -> None:
    """See that the gates on a path give numbers.

    Args:
        name: the path.
        v: what they give, float64; None passes.
        what: its name, for the message.
        of: what it is indexed by, likewise.

    Raises:
        FoldError: they are on the meta device, or not finite.
    """
    if v is None:
        return
    if v.is_meta:
        raise FoldError(
            f"cannot fold the gate on {name!r}: the model is on the meta device and has no numbers. Fill it first: "
            "model.to_empty(device=...) and load_state_dict"
        )
    if not bool(v.isfinite().all()):
        bad = (~v.isfinite()).flatten().nonzero().flatten().tolist()
        raise FoldError(
            f"cannot fold the gate on {name!r}: its {what} is not finite in {len(bad)} of {v.numel()} {of} "
            f"(first: {bad[0]}). Training diverged or psi was overwritten; go back to a good checkpoint"
        )
