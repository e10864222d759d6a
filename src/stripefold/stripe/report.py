"""The result of one observation: every gate's stripes, and what was not covered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stripefold.errors import ObserveError
from stripefold.stripe import files, table
from stripefold.stripe.discover import NotAGate
from stripefold.stripe.layer import LayerStripes


@dataclass(frozen=True, kw_only=True)
class StripeReport:
    """What ``observe`` saw.

    Attributes:
        layers: One entry per channel gate, in the order of computation; empty for a model without channel attention.
        others: Products of two image-dependent values that are no channel gates, with the reason.
        uncalled: Affine layers that the traced run did not use.
        unrecorded: Gates that the trace shows and no batch reached, with the reason.
        images: Number of images seen.
        model: The model's class name.
        versions: Of stripefold and torch.
    """

    layers: tuple[LayerStripes, ...]
    others: tuple[NotAGate, ...] = ()
    uncalled: tuple[str, ...] = ()
    unrecorded: tuple[str, ...] = ()
    images: int = 0
    model: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def layer(self, name: str) -> LayerStripes:
        """The entry of one gate.

        Raises:
            ObserveError: There is none of that name.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        known = ", ".join(repr(layer.name) for layer in self.layers[:8]) or "none"
        raise ObserveError(f"no gate {name!r} in this report of {self.model}. Its gates: {known}")

    def merge(self, other: StripeReport) -> StripeReport:
        """This observation and another of the same model, on other images; exact up to float64 rounding.

        Raises:
            ObserveError: The other is of a model with other gates.
        """
        mine, its = {layer.name: layer for layer in self.layers}, {layer.name: layer for layer in other.layers}
        unknown = sorted(_gates(self) ^ _gates(other))
        if unknown:
            raise ObserveError(
                f"cannot merge observations of {self.model} and {other.model}: {unknown[0]!r} is a gate of only one "
                "of them. Merge observations of one and the same model"
            )
        joint = dict.fromkeys((*mine, *its))
        layers = [mine[n].merge(its[n]) if n in mine and n in its else mine.get(n) or its[n] for n in joint]
        return replace(
            self,
            layers=tuple(sorted(layers, key=lambda layer: layer.depth)),
            unrecorded=tuple(line for line in self.unrecorded if line in other.unrecorded),
            uncalled=tuple(name for name in self.uncalled if name in other.uncalled),
            images=self.images + other.images,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that strict JSON can hold (no NaN); lossless, see ``from_dict``."""
        return files.to_dict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> StripeReport:
        """The report that ``to_dict`` described.

        Raises:
            ObserveError: It is no such description.
        """
        return files.from_dict(cls, content)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one file, whole or not at all: ``.json`` to be read by others, ``.safetensors`` to be small.

        Raises:
            ObserveError: Another suffix.
            OSError: The folder does not exist, the disk is full ...
        """
        return files.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StripeReport:
        """Read what ``save`` wrote.

        Raises:
            ObserveError: The file is missing, damaged, or no stripe report.
        """
        return files.load(cls, path)

    def to_csv(self, path: str | os.PathLike[str], *, by_channel: bool = False) -> Path:
        """Write the table, one row per gate, or one row per gate and channel (mean and standard deviation).

        Raises:
            OSError: The folder does not exist, the disk is full ...
        """
        return files.to_csv(self, path, by_channel=by_channel)

    def __str__(self) -> str:
        return table.as_text(self)


def _gates(report: StripeReport) -> set[str]:
    return {layer.name for layer in report.layers} | {line.partition(": ")[0] for line in report.unrecorded}
