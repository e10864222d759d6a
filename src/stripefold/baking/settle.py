"""Settle, then bake: a short training in which each gate moves from v(x) to a constant that trains with all weights.

At its end the network computes with its constants and nothing else, so that baking them loses nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stripefold.asr.gate import StaticGate
from stripefold.baking.batches import Batches
from stripefold.baking.movers import Course, Movers
from stripefold.baking.override_gates import override_gates
from stripefold.baking.settle_losses import Losses
from stripefold.baking.settle_options import Settle
from stripefold.baking.settle_state import Checkpoint, TrainingPosition, state_fingerprint
from stripefold.errors import BakeError
from stripefold.modules.modules import first_parameter
from stripefold.modules.tensors import tensors_in
from stripefold.stripe.batches import Batch
from stripefold.stripe.discover import ChannelGate


class Settling:
    """A training of all weights of a model, in place; without gates it is any training, the control of the others.

    Args:
        model: with weights of its own; its parameters that need no gradient stay as they are.
        gates: all that were found in it.
        start: gate -> v (C,), of those that settle; in the order in which they move, the first in front.
        asr: gate -> a gate of ASR whose value its constant is.
        options: how.
        batches: what it trains on.

    Raises:
        BakeError: nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        gates: Sequence[ChannelGate],
        start: Mapping[str, Tensor],
        options: Settle,
        batches: Batches,
        *,
        asr: Mapping[str, StaticGate] | None = None,
    ) -> None:
        like = first_parameter(model)
        self._device = torch.device("cpu") if like is None else like.device
        self._model, self._gates, self._options, self._batches = model, gates, options, batches
        about = _about(options, list(start), model)
        self._movers = Movers(start, asr or {}, self._device)
        self._course = Course(options, list(start))
        self._losses = Losses(model, options, self._device, batches.name)
        self._optimizer, self._schedule = self._tools()
        others = {"constants": self._movers, "optimizer": self._optimizer, "schedule": self._schedule}
        self._checkpoint = None
        if options.checkpoint is not None:
            self._checkpoint = Checkpoint(options.checkpoint, about, model, others)

    def run(self, progress: Callable[[int], None] | None = None) -> dict[str, Tensor]:
        """Train to the end, from the checkpoint if there is one; the model is then in evaluation mode.

        Args:
            progress: called with the number of steps done.

        Returns:
            Gate -> v (C,), float64 on the CPU.

        Raises:
            BakeError: no targets, a loss that is not finite, data in another order than before the interruption.
        """
        position = TrainingPosition() if self._checkpoint is None else self._checkpoint.load()
        try:
            self._model.train()
        except NotImplementedError as error:
            raise BakeError(
                f"settle: {type(self._model).__name__} cannot be put into training mode ({error}): settle the model "
                "that it was exported from"
            ) from error
        with torch.enable_grad():
            for batch in self._batches_from(position):
                self._step(batch, position)
                position.step += 1
                last = position.step == self._options.steps
                if self._checkpoint is not None and (last or position.step % self._options.every == 0):
                    position.mark = _mark(batch)
                    self._checkpoint.save(position)
                if progress is not None:
                    progress(position.step)
        self._model.eval()
        return self._movers.constants()

    def _step(self, batch: Batch, position: TrainingPosition) -> None:
        autocast: Any = contextlib.nullcontext()
        if self._options.autocast is not None:
            # Without the cache: constants are leaves that are cast once per step.
            autocast = torch.autocast(self._device.type, self._options.autocast, cache_enabled=False)
        self._optimizer.zero_grad(set_to_none=True)
        blend = self._course.at(position.step)
        with override_gates(self._model, self._gates, self._movers.values(), blend), autocast:
            loss = self._losses(self._model, batch) + self._course.penalty()
        if not bool(loss.isfinite()):
            raise BakeError(
                f"settle: the loss is {loss.item()} at step {position.step + 1}: give a lower lr, or look at the data"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()
        self._movers.keep_signs_()

    def _batches_from(self, position: TrainingPosition) -> Iterator[Batch]:
        """The batches that are left, each drawn after the same seed whether the run was interrupted or not."""
        behind = position.step - position.epoch_start
        while position.step < self._options.steps:
            self._begin_epoch(position)
            source = iter(self._batches)
            for index in range(self._options.steps):
                self._seed(position.epoch_start + index)
                batch = next(source, None)
                if batch is None:
                    break
                if index >= behind:
                    yield batch
                elif index == behind - 1 and not math.isclose(_mark(batch), position.mark, rel_tol=1e-9):
                    raise BakeError(
                        f"settle: {self._batches.name} come in another order than when {self._options.checkpoint} was "
                        "written: give a loader whose order depends on torch's, numpy's or Python's random numbers, or "
                        "on set_epoch(n), and not on how often it was read"
                    )
                if position.step == self._options.steps:
                    return
            if position.step == position.epoch_start:
                raise BakeError(f"settle: {self._batches.name} ended before step {position.step}, where it stood")
            behind = 0
            position.epoch, position.epoch_start = position.epoch + 1, position.step

    def _begin_epoch(self, position: TrainingPosition) -> None:
        data: Any = self._batches.data
        batches: Any = getattr(data, "batch_sampler", None)
        for each in (data, getattr(data, "sampler", None), batches, getattr(batches, "sampler", None)):
            tell = getattr(each, "set_epoch", None)
            if callable(tell):
                tell(position.epoch)
        own = getattr(data, "generator", None)
        if isinstance(own, torch.Generator):
            own.manual_seed(_derived(self._options.seed, position.epoch_start))

    def _seed(self, step: int) -> None:
        seed = _derived(self._options.seed, step)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def _tools(self) -> tuple[torch.optim.Optimizer, Any]:
        options = self._options
        weights = [p for p in self._model.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": weights}] if weights else []
        constants = list(self._movers.parameters())
        if constants:
            groups.append({"params": constants, "weight_decay": 0.0})
        if not groups:
            raise BakeError("settle: no parameter of the model needs a gradient, and no gate settles")
        optimizer = (options.optimizer or self._sgd)(groups)
        if constants:
            optimizer.param_groups[-1]["lr"] *= options.constants_rate
        return optimizer, (options.schedule or self._cosine)(optimizer)

    def _sgd(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=self._options.lr, momentum=0.9, weight_decay=1e-4)

    def _cosine(self, optimizer: torch.optim.Optimizer) -> Any:
        steps = self._options.steps
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))


def _about(options: Settle, names: list[str], model: nn.Module) -> dict[str, Any]:
    """What must not change between a checkpoint and the run that goes on from it."""
    kept = ("steps", "way", "over", "penalty", "lr", "constants_rate", "distill", "seed")
    return {
        **{name: getattr(options, name) for name in kept},
        "autocast": str(options.autocast),
        "gates": names,
        "network": state_fingerprint(model),
    }


def _derived(seed: int, step: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=7).digest(), "little")


def _mark(batch: Batch) -> float:
    return sum(float(t.double().sum()) for t in tensors_in(batch.inputs))
