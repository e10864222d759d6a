"""Stripes over training: one report per recorded epoch, all on the same images, reduced to what can be drawn."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stripefold.atomic import write_text
from stripefold.documents import DocumentError, read_json
from stripefold.errors import ObserveError
from stripefold.stripe.epoch import QUANTITIES, EpochStripes, numbers
from stripefold.stripe.report import StripeReport
from stripefold.stripe.trajectory_content import FORMAT, read_content, read_state

# Channel means are for pictures: six digits keep a file of hundreds of epochs small.
_DIGITS = 6


class Trajectory:
    """What every gate did over training, epoch by epoch, on a fixed set of images.

    >>> Trajectory().epochs
    []

    Source: the paper looks at the same: the attention's values and their first differences over the epochs (ASR, Huang
    et al. 2024, section 2).
    """

    def __init__(self) -> None:
        self.model = ""
        self.images = 0
        self.epochs: list[int] = []
        self._rows: dict[str, list[EpochStripes]] = {}
        self._means: dict[str, list[Tensor]] = {}
        self._last: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates' names, in the order of computation."""
        return tuple(self._rows)

    def add(self, epoch: int, report: StripeReport) -> None:
        """Record one epoch.

        Args:
            epoch: Its number; rising from call to call.
            report: An observation of the same images as before, with the same ``keep``.

        Raises:
            ObserveError: The epoch does not follow, or the report is of other gates or of other images; nothing is
                recorded then.
        """
        self._check(epoch, report)
        for layer in report.layers:
            before = self._last.get(layer.name)
            self._rows.setdefault(layer.name, []).append(numbers(layer, before))
            self._means.setdefault(layer.name, []).append(layer.mean.to(torch.float32))
            self._last[layer.name] = (layer.sample, layer.mean)
        self.model, self.images = report.model, report.images
        self.epochs.append(epoch)

    def rows(self, gate: str) -> tuple[EpochStripes, ...]:
        """The numbers of one gate, one entry per recorded epoch.

        Raises:
            ObserveError: There is no such gate.
        """
        return tuple(self._rows[self._known(gate)])

    def series(self, gate: str, quantity: str) -> list[float | None]:
        """One of ``QUANTITIES`` of one gate over the recorded epochs.

        Raises:
            ObserveError: There is no such gate or quantity.
        """
        if quantity not in QUANTITIES:
            raise ObserveError(f"no quantity {quantity!r} in a trajectory; choose one of {', '.join(QUANTITIES)}")
        return [getattr(row, quantity) for row in self.rows(gate)]

    def channel_means(self, gate: str) -> Tensor:
        """(epochs, C) float32, the channels' means over the images at each recorded epoch.

        Raises:
            ObserveError: There is no such gate.
        """
        return torch.stack(self._means[self._known(gate)])

    def to_dict(self) -> dict[str, Any]:
        """Everything but the last epoch's values, as strict JSON can hold it; the means with six digits."""
        return {
            "format": FORMAT,
            "model": self.model,
            "images": self.images,
            "epochs": list(self.epochs),
            "gates": {
                gate: {
                    "rows": [asdict(row) for row in rows],
                    "channel_means": [[_rounded(value) for value in mean.tolist()] for mean in self._means[gate]],
                }
                for gate, rows in self._rows.items()
            },
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Trajectory:
        """The trajectory that ``to_dict`` described; the first epoch added to it has no differences.

        Raises:
            ObserveError: It is no such description.
        """
        held = read_content(content)
        found = cls()
        found.model, found.images, found.epochs = held.model, held.images, held.epochs
        for gate, kept in held.gates.items():
            found._rows[gate], found._means[gate] = kept.rows, list(kept.channel_means)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything, tensors and plain values only: going on from it gives what an unbroken record gives."""
        last = {gate: [sample, mean] for gate, (sample, mean) in self._last.items()}
        means = {gate: torch.stack(means) for gate, means in self._means.items()}
        return {**self.to_dict(), "last": last, "means": means}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Trajectory:
        """The trajectory whose ``state_dict`` this is.

        Raises:
            ObserveError: It is none.
        """
        content, held = read_state(state)
        found = cls.from_dict(content)
        found._last, found._means = held.last, {gate: list(means) for gate, means in held.means.items()}
        return found

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a JSON file, whole or not at all.

        Raises:
            OSError: The folder does not exist, the disk is full ...
        """
        write_text(path, json.dumps(self.to_dict(), allow_nan=False))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what ``save`` wrote.

        Raises:
            ObserveError: The file is missing, damaged, or something else.
        """
        try:
            return cls.from_dict(read_json(path))
        except (DocumentError, ObserveError) as error:
            raise ObserveError(f"{path} cannot be read: {error}") from error

    def _known(self, gate: str) -> str:
        if gate not in self._rows:
            known = ", ".join(repr(name) for name in self.gates[:8]) or "none"
            raise ObserveError(f"no gate {gate!r} in this trajectory of {self.model}. Its gates: {known}")
        return gate

    def _check(self, epoch: int, report: StripeReport) -> None:
        if self.epochs and epoch <= self.epochs[-1]:
            raise ObserveError(f"epoch {epoch} does not follow epoch {self.epochs[-1]}: record epochs in their order")
        names = tuple(layer.name for layer in report.layers)
        if self.epochs and names != self.gates:
            odd = sorted(set(names) ^ set(self.gates))[:1] or list(names[:1])
            raise ObserveError(
                f"epoch {epoch} shows other gates than the epochs before ({odd[0]!r}): record one model, unchanged"
            )
        for layer in report.layers:
            before = self._last.get(layer.name)
            if before is not None and before[0].shape != layer.sample.shape:
                raise ObserveError(
                    f"the gate {layer.name!r} was kept for {tuple(before[0].shape)} (images, channels) and at epoch "
                    f"{epoch} for {tuple(layer.sample.shape)}: observe the same images with the same keep every time"
                )


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
