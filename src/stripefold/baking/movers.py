"""Gates that are trained from v(x) to a constant: the constants, and how far each gate has come at a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from stripefold.asr.gate import StaticGate
from stripefold.baking.settle_options import Settle


class Movers(nn.Module):
    """One trained constant for each gate, free or that of an ASR gate.

    A free constant that is not negative stays so, because where it folds may depend on that (through a ReLU, say).

    Args:
        start: gate -> v (C,).
        asr: gate -> the gate of ASR that gives its constant.
        device: where they train.
    """

    def __init__(self, start: Mapping[str, Tensor], asr: Mapping[str, StaticGate], device: torch.device) -> None:
        super().__init__()
        self._names = tuple(start)
        self._signs = {name: v.to(device) >= 0 for name, v in start.items() if name not in asr}
        self.free = nn.ParameterList([start[name].to(device, torch.float32).clone() for name in self._signs])
        self.gates = nn.ModuleList([asr[name].to(device) for name in start if name in asr])
        self._in_asr = [name for name in start if name in asr]

    def values(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Gate -> v (C,), through which gradients flow."""
        found = {name: v.to(dtype) for name, v in zip(self._signs, self.free, strict=True)}
        found |= {name: gate(dtype) for name, gate in zip(self._in_asr, self.gates, strict=True)}
        return {name: found[name] for name in self._names}

    def constants(self) -> dict[str, Tensor]:
        """Gate -> v (C,), float64 on the CPU."""
        with torch.no_grad():
            return {name: v.detach().cpu().clone() for name, v in self.values(torch.float64).items()}

    @torch.no_grad()
    def keep_signs_(self) -> None:
        """Bring constants that crossed 0 back to it."""
        for v, positive in zip(self.free, self._signs.values(), strict=True):
            v.copy_(torch.where(positive, v.clamp(min=0), v))


class Course:
    """How far each gate has come, and the penalty on those that still move.

    Args:
        options: of the call.
        order: the gates, those that move first in front.
    """

    def __init__(self, options: Settle, order: Sequence[str]) -> None:
        self._options = options
        self._rank = {name: (k + 1) / len(order) for k, name in enumerate(order)}
        self._share = 0.0
        self._deviations: list[Tensor] = []

    def at(self, step: int) -> Callable[[str, Tensor, Tensor], Tensor]:
        """What stands between a gate and its constant at a step, counted from 0."""
        self._share = step / self._options.steps
        self._deviations = []
        return self._blend

    def weight(self, name: str) -> float:
        """a in (1 - a) v(x) + a c."""
        way, moved = self._options.way, self._share / self._options.over
        if way in ("first", "asr") or moved >= 1:
            return 1.0
        if way == "ramp":
            return moved
        return float(moved >= self._rank[name]) if way == "staged" else 0.0

    def penalty(self) -> Tensor | float:
        """What is added to the loss, after the model ran."""
        return self._options.penalty * torch.stack(self._deviations).sum() if self._deviations else 0.0

    def _blend(self, name: str, dynamic: Tensor, constant: Tensor) -> Tensor:
        weight = self.weight(name)
        if weight == 1:
            return constant
        if self._options.way == "penalty":
            wide = torch.promote_types(dynamic.dtype, torch.float32)
            found, wanted = dynamic.to(wide), constant.to(wide)
            square = wanted.detach().square().mean().clamp(min=torch.finfo(wide).tiny)
            self._deviations.append((found - wanted).square().mean() / square)
        return dynamic if weight == 0 else torch.lerp(dynamic, constant, weight)
