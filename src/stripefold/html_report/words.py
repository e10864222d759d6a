"""What a report says in words: the sentence and the figures at the head of the page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stripefold.stripe.report import StripeReport
    from stripefold.stripe.trajectory import Trajectory


def sentence(report: StripeReport) -> str:
    """One sentence for a reader who has never heard of a stripe index."""
    model = report.model or "The model"
    if not report.layers:
        return (
            f"{model} has no channel attention that depends on the image ({count(report.images, 'image')} seen): "
            "there are no stripes to look at."
        )
    if report.images == 0:
        return (
            f"{count(len(report.layers), 'static gate')} of {model}: a static gate gives every image the same scales."
        )
    seen = f"Over {count(report.images, 'image')}, {count(len(report.layers), 'channel gate')} of {model}: "
    if report.images == 1:
        return seen + "a single image, over which nothing can vary; observe more to see stripes."
    index = statistics.median(layer.stripe_index for layer in report.layers)
    where = "in the gate" if len(report.layers) == 1 else "in the median gate"
    sentence = (
        f"{seen}{where}, {_share(index)} of the variance of the scales lies between channels and is the same for every "
        f"image"
    )
    ratios = [layer.within_over_mean for layer in report.layers if layer.within_over_mean is not None]
    if ratios:
        sentence += f"; from image to image a channel's scale varies by {_share(statistics.median(ratios))} of its size"
    return sentence + "."


def short_names(names: Sequence[str]) -> list[str]:
    """Names of gates without the end that all of them share, at least one part of each left.

    >>> short_names(["layer1.0.bn2.gates.0.attention", "layer1.1.bn2.gates.0.attention"])
    ['layer1.0', 'layer1.1']
    >>> short_names(["features.se"])
    ['features.se']
    """
    parts = [name.split(".") for name in names]
    shared = 0
    while len(parts) > 1 and all(len(each) > shared + 1 for each in parts):
        if len({each[-1 - shared] for each in parts}) > 1:
            break
        shared += 1
    return [".".join(each[: len(each) - shared]) for each in parts]


def seen_in_pictures(report: StripeReport) -> str:
    """A remark where the pictures show fewer images than were seen."""
    rows = max((len(layer.sample) for layer in report.layers), default=0)
    return f"The pictures show {rows:,} of {report.images:,} images." if 0 < rows < report.images else ""


def tiles(report: StripeReport, trajectory: Trajectory | None) -> list[tuple[str, str, str]]:
    """The few figures to see first: value, what it is, and which gate stands out."""
    if not report.layers:
        return []
    index = sorted(report.layers, key=lambda layer: layer.stripe_index)
    median = statistics.median(layer.stripe_index for layer in report.layers)
    shown = [
        (f"{len(report.layers)}", _kind_of_gates(report), ""),
        *([(f"{report.images:,}", "images" if report.images > 1 else "image", "")] if report.images else []),
        (f"{median:.3f}", "median stripe index", "1: every image gets the same scales"),
        (f"{index[0].stripe_index:.3f}", "least striped", shown_name(index[0].name)),
    ]
    varied = [layer for layer in report.layers if layer.within_over_mean is not None]
    if varied:
        most = max(varied, key=lambda layer: layer.within_over_mean or 0.0)
        shown.append((f"{most.within_over_mean:.2g}", "largest std / mean |v|", shown_name(most.name)))
    if trajectory is not None and trajectory.epochs:
        first, last = trajectory.epochs[0], trajectory.epochs[-1]
        shown.append((f"{len(trajectory.epochs)}", "epochs recorded", f"{first} to {last}"))
    return shown


def most_varied(report: StripeReport) -> int:
    """Which gate the page opens on: the one whose scales vary most with the image, relative to their size."""
    layers = report.layers
    return max(
        range(len(layers)),
        key=lambda place: (
            not layers[place].index_flag,
            layers[place].within_over_mean or 0.0,
            -layers[place].stripe_index,
        ),
        default=0,
    )


def shown_name(name: str) -> str:
    """A gate's name as a reader sees it; the model itself has none.

    >>> shown_name("")
    '(the model)'
    """
    return name or "(the model)"


def _kind_of_gates(report: StripeReport) -> str:
    kind = "channel" if report.images else "static"
    return f"{kind} gates" if len(report.layers) > 1 else f"{kind} gate"


def _share(value: float) -> str:
    """Two digits of a share, and never "0 %" for what is not 0.

    >>> _share(0.0312), _share(0.25), _share(2.3e-6), _share(0.0)
    ('3.1 %', '25 %', 'less than 0.01 %', '0 %')
    """
    if value == 0:
        return "0 %"
    if value < 1e-4:
        return "less than 0.01 %"
    return f"{100 * value:.2g} %" if value < 0.995 else f"{100 * value:.4g} %"


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "image"), count(2000, "image")
    ('1 image', '2,000 images')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
