"""The page of an observation: stripes, small multiples by depth, and the gates over training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stripefold.html_report.pack import Arrays, packed_layers, packed_trajectory
from stripefold.html_report.templates import fill
from stripefold.html_report.words import most_varied, seen_in_pictures, sentence, short_names, tiles

if TYPE_CHECKING:
    from stripefold.stripe.report import StripeReport
    from stripefold.stripe.trajectory import Trajectory


def render_page(report: StripeReport, *, trajectory: Trajectory | None = None, title: str | None = None) -> str:
    """The page as HTML.

    Args:
        report: What was observed.
        trajectory: The same over training.
        title: Its heading; the model's name where not given.
    """
    arrays = Arrays()
    layers = packed_layers(report, arrays)
    over_training = packed_trajectory(trajectory, arrays)
    return fill(
        "stripes",
        drawn={"layers": layers, "trajectory": over_training, "first": most_varied(report)} if layers else None,
        title=title or f"Stripes of {report.model or 'a model'}",
        sentence=sentence(report),
        tiles=tiles(report, trajectory),
        versions=report.versions,
        report=report,
        layers=layers,
        labels=short_names([layer["gate"] for layer in layers]),
        seen_in_pictures=seen_in_pictures(report),
        has_classes=any(layer["class_share"] is not None for layer in layers),
        flags=sorted({layer["flag"] for layer in layers if layer["flag"]}),
        over_training=over_training is not None,
        arrays=arrays.packed(),
    )
