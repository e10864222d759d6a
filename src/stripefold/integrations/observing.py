"""One look at a model's gates while it trains, dynamic or static."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stripefold import __version__
from stripefold.asr.sites import scales
from stripefold.errors import ConfigError, ObserveError
from stripefold.stripe.layer import LayerStripes
from stripefold.stripe.observe import observe
from stripefold.stripe.report import StripeReport

STATIC = "StaticGate"


def look(network: nn.Module, images: Any, *, keep: int = 256, by_class: bool = False) -> StripeReport:
    """The observation of a network's dynamic gates; without any, the scales of its static ones.

    A static gate gives every image the same scale, so its entry holds one vector, and the report no images.

    Args:
        network: Any model.
        images: For ``observe``.
        keep: Likewise.
        by_class: Likewise.

    Raises:
        ObserveError: It has no gates of either kind.
    """
    report = observe(network, images, keep=keep, by_class=by_class)
    return report if report.layers else _static_report(network, report)


def _static_report(network: nn.Module, empty: StripeReport) -> StripeReport:
    found = scales(network)
    if not found:
        raise ObserveError(f"{empty.model} has no attention to observe, neither dynamic nor static")
    last = max(1, len(found) - 1)
    layers = tuple(
        LayerStripes(
            name=name, kind=STATIC, depth=place / last, channels=len(v), images=1, keep=1, dtype="float32",
            mean=v.double().cpu(), m2=torch.zeros(len(v), dtype=torch.float64), sample=v[None].float().cpu(),
        )
        for place, (name, v) in enumerate(found.items())
    )  # fmt: skip
    versions = {"stripefold": __version__, "torch": str(torch.__version__)}
    return StripeReport(layers=layers, model=empty.model, versions=versions)


def check_drawing() -> None:
    """Refuse at the start what would fail after hours of training.

    Raises:
        ConfigError: A library that draws is missing.
    """
    from stripefold.html_report.write import DRAWING, require

    try:
        require(DRAWING, "the report of an observation")
    except ModuleNotFoundError as error:
        raise ConfigError(str(error)) from error
