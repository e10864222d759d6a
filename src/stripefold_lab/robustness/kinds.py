"""The kinds of disturbance, and how strong each is at severity 1 to 5."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stripefold.errors import ConfigError

DisturbanceFamily = Literal["noise", "corruption", "inside"]
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """One kind of disturbance.

    Attributes:
        family: ``noise`` in the image, common ``corruption`` of the image, or ``inside`` the network.
        strengths: At severity 1 to 5.
        unit: What the strength is.
        origin: Whose the strengths are.
    """

    family: DisturbanceFamily
    strengths: tuple[float, float, float, float, float]
    unit: str
    origin: str = "ours"

    def strength(self, severity: int) -> float:
        """The strength at a severity, 1 to 5."""
        return self.strengths[severity - 1]


_CIFAR_C = "as in the script of CIFAR-10-C"
_TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5)
KINDS: dict[str, Disturbance] = {
    "gaussian-noise": Disturbance(
        family="noise", strengths=(0.04, 0.06, 0.08, 0.09, 0.10), unit="standard deviation", origin=_CIFAR_C
    ),
    "uniform-noise": Disturbance(family="noise", strengths=(0.05, 0.1, 0.15, 0.2, 0.3), unit="half width"),
    "salt-and-pepper": Disturbance(
        family="noise", strengths=(0.01, 0.02, 0.03, 0.05, 0.07), unit="share of values", origin=_CIFAR_C
    ),
    "gaussian-blur": Disturbance(
        family="corruption", strengths=(0.4, 0.6, 0.8, 1.0, 1.5), unit="standard deviation in 32nds of the side"
    ),
    "pixelate": Disturbance(family="corruption", strengths=(0.8, 0.65, 0.5, 0.35, 0.25), unit="share of the side kept"),
    "jpeg": Disturbance(family="corruption", strengths=(80, 65, 58, 50, 40), unit="quality", origin=_CIFAR_C),
    "brightness": Disturbance(family="corruption", strengths=(1.2, 1.4, 1.6, 1.8, 2.0), unit="factor"),
    "contrast": Disturbance(family="corruption", strengths=(0.75, 0.5, 0.4, 0.3, 0.15), unit="factor", origin=_CIFAR_C),
    "batch-constant": Disturbance(family="inside", strengths=_TENTHS, unit="N_a - 1 and N_b"),
    "batch-random": Disturbance(family="inside", strengths=_TENTHS, unit="deviation of N_a and N_b"),
    "layer-constant": Disturbance(family="inside", strengths=_TENTHS, unit="share of the layer's deviation"),
    "layer-random": Disturbance(family="inside", strengths=_TENTHS, unit="share of the layer's deviation"),
}


def choose_kinds(names: Iterable[str] | None) -> tuple[str, ...]:
    """Names of kinds in the order of ``KINDS``; a family's name stands for its kinds.

    Args:
        names: None is every kind.

    Raises:
        ConfigError: If a name is unknown, or there is none.

    >>> choose_kinds(["jpeg", "noise"])
    ('gaussian-noise', 'uniform-noise', 'salt-and-pepper', 'jpeg')
    """
    if names is None:
        return tuple(KINDS)
    wanted = set(names)
    families = {kind.family for kind in KINDS.values()}
    unknown = sorted(wanted - set(KINDS) - families)
    if unknown or not wanted:
        found = f"unknown kind {unknown[0]!r}" if unknown else "no kind of disturbance was named"
        raise ConfigError(f"{found}; choose from {', '.join([*sorted(families), *KINDS])}")
    return tuple(name for name, kind in KINDS.items() if name in wanted or kind.family in wanted)


def choose_severities(severities: Iterable[int] | None) -> tuple[int, ...]:
    """Severities in rising order, each once.

    Args:
        severities: None is 1 to 5.

    Raises:
        ConfigError: If there is none, or one outside 1 to 5.
    """
    chosen = tuple(sorted(set(SEVERITIES if severities is None else severities)))
    wrong = [severity for severity in chosen if severity not in SEVERITIES]
    if wrong or not chosen:
        found = f"severity {wrong[0]} does not exist" if wrong else "no severity was named"
        raise ConfigError(f"{found}; choose from 1, 2, 3, 4, 5 (0, the clean images, is always measured)")
    return chosen
