"""Noise in what BatchNorm makes of its batch: what a run says about it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from stripefold.errors import ConfigError

NoiseKind = Literal["constant", "random"]


@dataclass(frozen=True, kw_only=True)
class BatchNoise:
    """Every BatchNorm computes ``gamma (N_a (x - mean) / std + N_b) + beta``.

    That is what wrong statistics do: N_a is a wrong standard deviation, N_b a wrong mean.

    Attributes:
        kind: ``constant``: N_a = 1 + scale and N_b = shift, in every channel and always; ``random``: N_a is drawn from
            a normal distribution around 1 with deviation ``scale``, N_b around 0 with deviation ``shift``, anew for
            every channel and step.
        scale: How far N_a is from 1.
        shift: How far N_b is from 0.

    Raises:
        ConfigError: If a value is of the wrong type or out of its range.

    Source: Liang et al. 2020 (IEBN, arXiv 1908.04008) train under a "noise attack" with constants (N_a, N_b); their
    (0.8, 0.5) is ``scale=-0.2, shift=0.5`` here. How far this is theirs: docs/guides/robustness.md.
    """

    kind: NoiseKind
    scale: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.kind not in get_args(NoiseKind):
            raise ConfigError(f"batch_noise has kind {self.kind!r}; choose one of {', '.join(get_args(NoiseKind))}")
        for name in ("scale", "shift"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"batch_noise has {name} {value!r}; give a finite number")
            if self.kind == "random" and value < 0:
                raise ConfigError(f"batch_noise has {name} {value}; of random noise it is a deviation, at least 0")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> BatchNoise | None:
        """What a run's ``batch_noise`` says; an empty mapping says None.

        Args:
            values: ``kind``, ``scale``, ``shift``.

        Raises:
            ConfigError: If a key is none of them, ``kind`` is missing, or a value is refused.

        >>> BatchNoise.read({"kind": "constant", "shift": 0.5})
        BatchNoise(kind='constant', scale=0.0, shift=0.5)
        """
        if not values:
            return None
        known = [spec.name for spec in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown or "kind" not in values:
            found = f"has the key {unknown[0]!r}" if unknown else "has no kind"
            raise ConfigError(f"batch_noise {found}; give {', '.join(known)}")
        return cls(**values)
