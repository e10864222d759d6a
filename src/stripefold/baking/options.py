"""What a call of ``bake`` asks for, checked before anything runs."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from stripefold.baking.finetune import FineTune
from stripefold.baking.metric import Metric
from stripefold.baking.settle_options import Settle
from stripefold.errors import BakeError
from stripefold.modules.modules import is_sharded, uninitialized, unwrap_name, wrapped_inside
from stripefold.stripe.discover import ChannelGate

Constants = Literal["mean", "descriptor", "energy", "least-squares"]
To = Literal["plain", "asr"]
Where = str | Sequence[str] | Callable[[str, nn.Module], bool]
Recalibrate = bool | Literal["auto"]
Progress = Callable[[str, int, int], None]
"""(what is going on, steps done, of how many; 0 where that is not known)"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keyword arguments of ``bake``."""

    constants: Constants
    to: To
    where: Where | None
    metric: Metric | None
    max_drop: float | None
    validation: Any
    recalibrate: Recalibrate
    finetune: FineTune | None
    device: torch.device | str | None
    progress: Progress | None
    speed: bool
    process_group: Any = None
    settle: Settle | None = None

    def __post_init__(self) -> None:
        _one_of("constants", self.constants, ("mean", "descriptor", "energy", "least-squares"))
        _one_of("to", self.to, ("plain", "asr"))
        _one_of("recalibrate", self.recalibrate, (True, False, "auto"))
        drop = self.max_drop
        number = isinstance(drop, (int, float)) and not isinstance(drop, bool) and math.isfinite(drop)
        if drop is not None and not number:
            raise BakeError(f"max_drop={drop!r}: give a finite number in units of the metric, such as 0.5, or None")
        if self.metric is not None and not callable(self.metric):
            raise BakeError(f"metric is {type(self.metric).__name__}: give a function of the model, higher is better")
        if self.metric is not None and self.validation is not None:
            raise BakeError("metric= and validation= are both given: a metric of yours brings its own data")
        if self.finetune is not None and not isinstance(self.finetune, FineTune):
            raise BakeError(f"finetune is {type(self.finetune).__name__}: give FineTune(steps=..., lr=...)")
        if self.finetune is not None and self.process_group is not None:
            raise BakeError("finetune trains in one process: leave out process_group, or finetune")
        if self.process_group is not None and not (dist.is_available() and dist.is_initialized()):
            raise BakeError("process_group is given, but torch.distributed is not initialised: leave it out")
        if self.finetune is not None and self.to == "asr":
            raise BakeError("finetune trains constants, and to='asr' leaves none: train the gates yourself, then fold")
        self._check_settle()

    def _check_settle(self) -> None:
        if self.settle is None:
            return
        if not isinstance(self.settle, Settle):
            raise BakeError(f"settle is {type(self.settle).__name__}: give Settle(steps=..., way=...)")
        if self.finetune is not None:
            raise BakeError("finetune trains the constants alone, settle all weights with them: give one of the two")
        if self.process_group is not None:
            raise BakeError("settle trains in one process: leave out process_group, or settle")
        if self.to == "asr":
            raise BakeError(
                "settle ends in constants, and to='asr' leaves none: give Settle(way='asr') for gates of ASR"
            )

    @property
    def kind(self) -> Constants:
        """Which constants are taken: a gate of ASR starts at what the attention says to its mean descriptor."""
        asr = self.to == "asr" or (self.settle is not None and self.settle.way == "asr")
        return "descriptor" if asr else self.constants

    def tell(self, what: str, done: int = 0, total: int = 0) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(what, done, total)


def _one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise BakeError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")


def check_model(model: object) -> None:
    """Refuse what is no bare model.

    Raises:
        BakeError: no module, or a wrapper (DDP, FSDP, compiled), which is named.
    """
    if not isinstance(model, nn.Module):
        raise BakeError(f"bake needs an nn.Module, got {type(model).__name__}")
    lazy = uninitialized(model)
    if lazy is not None:
        raise BakeError(lazy)
    wrapper = unwrap_name(model) or ("FSDP2 (fully_shard)" if is_sharded(model) else None)
    if wrapper is None and wrapped_inside(model, "OptimizedModule") is not None:
        wrapper = f"torch.compile, at {wrapped_inside(model, 'OptimizedModule')!r}"
    if wrapper is not None:
        raise BakeError(f"cannot bake a model that is wrapped in {wrapper}: give the bare model, wrap the result")


def choose(model: nn.Module, gates: Sequence[ChannelGate], where: Where | None) -> list[ChannelGate]:
    """The gates that ``where`` selects, in their order.

    Raises:
        BakeError: none, or a pattern that matches no gate; the gates' names are listed.
    """
    if where is None:
        return list(gates)
    if callable(where):
        chosen = [gate for gate in gates if where(gate.name, model.get_submodule(gate.where))]
        missing = [] if chosen else ["the predicate given as where"]
    else:
        patterns = [where] if isinstance(where, str) else list(where)
        chosen = [gate for gate in gates if any(fnmatch.fnmatchcase(gate.name, pattern) for pattern in patterns)]
        missing = [repr(p) for p in patterns if not any(fnmatch.fnmatchcase(gate.name, p) for gate in gates)]
    if missing or not chosen:
        names = ", ".join(gate.name or "(the model)" for gate in gates[:8]) + (" ..." if len(gates) > 8 else "")
        raise BakeError(f"where: {', '.join(missing) or 'an empty list'} selects no gate; the gates are {names}")
    return chosen
