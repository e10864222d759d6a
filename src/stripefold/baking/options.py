"""What a call of ``bake`` asks for, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from stripefold.baking.common_options import BakeOptions
from stripefold.baking.finetune import FineTune
from stripefold.baking.settle_options import Settle
from stripefold.errors import BakeError
from stripefold.modules.modules import is_sharded, uninitialized, unwrap_name, wrapped_inside
from stripefold.modules.where import Where

__all__ = ["BakeConfig", "ConstantKind", "Recalibrate", "To", "Where", "check_model", "configured"]

ConstantKind = Literal["mean", "descriptor", "energy", "least-squares"]
To = Literal["plain", "asr"]
Recalibrate = bool | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class BakeConfig(BakeOptions):
    """The options of ``bake`` and ``bake_``; those that baking an ONNX file has as well are in ``BakeOptions``.

    With ``max_drop``, ``metric`` or ``validation`` each gate is measured alone: as many passes over the images as there
    are gates, and with a budget twice as many.

    Attributes:
        where: only the gates of these names: a glob, a list of globs, or a predicate ``(name, module) -> bool``.
        metric: a function of the model, higher is better; None is the top-1 accuracy in percent over ``validation``,
            or over the calibration data where they have class numbers.
        max_drop: how much the metric may fall before any repair, in its own units; None bakes every gate that can be.
        validation: (images, labels) batches for the accuracy.
        speed: also measure a forward pass before and after.
        progress: called with (what is going on, steps done, of how many).
        constants: "mean" of v over the images; "energy", or "least-squares": weighted by the energy of what is scaled,
            which leaves the least squared error of that; or "descriptor": the attention's own function of the mean
            descriptor, which is also where the gates of ``to="asr"`` start.
        to: "plain", or "asr": trainable gates of ASR instead (psi is the mean descriptor, theta the trained attention),
            to be trained further and folded by ``fold``.
        recalibrate: re-estimate the statistics of the BatchNorms behind the gates over the calibration data: True,
            False, or "auto": keep them only where the metric improves.
        finetune: how the constants are trained, or None.
        settle: how all weights are trained while the gates move to constants, or None. All gates that can be are then
            baked; ``max_drop`` is what the result may have lost.
        device: where to work; None is where the model is, which stays there.
        process_group: decide over the processes of this group, each of which calls ``bake`` on the same model and its
            own share of the data: moments, hits and BatchNorm statistics are merged, so that all bake alike. A
            ``metric`` of yours is called by all, and the first one's value counts. None stays in this process.
    """

    constants: ConstantKind = "mean"
    to: To = "plain"
    recalibrate: Recalibrate = "auto"
    finetune: FineTune | None = None
    settle: Settle | None = None
    device: torch.device | str | None = None
    process_group: Any = None

    def __post_init__(self) -> None:
        _one_of("constants", self.constants, ("mean", "descriptor", "energy", "least-squares"))
        _one_of("to", self.to, ("plain", "asr"))
        _one_of("recalibrate", self.recalibrate, (True, False, "auto"))
        super().__post_init__()
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
    def kind(self) -> ConstantKind:
        """Which constants are taken: a gate of ASR starts at what the attention says to its mean descriptor."""
        asr = self.to == "asr" or (self.settle is not None and self.settle.way == "asr")
        return "descriptor" if asr else self.constants


def configured(config: BakeConfig | None, options: Mapping[str, Any]) -> BakeConfig:
    """A configuration with some options changed.

    Args:
        config: of the call, or None: the defaults.
        options: the keyword arguments of the call.

    Raises:
        BakeError: no configuration, an unknown option, or one that is none.
    """
    if config is not None and not isinstance(config, BakeConfig):
        raise BakeError(f"config is {type(config).__name__}: give BakeConfig(max_drop=...), or options by name")
    known = {spec.name for spec in fields(BakeConfig)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise BakeError(f"bake has no option {unknown[0]!r}: it has {', '.join(sorted(known))} and example")
    return replace(config or BakeConfig(), **options)


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
