"""Pictures for papers, with matplotlib; figures are made without pyplot, so no state of the caller's is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from stripefold.html_report.words import shown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from stripefold.stripe.layer import LayerStripes
    from stripefold.stripe.report import StripeReport
    from stripefold.stripe.trajectory import Trajectory

# Okabe and Ito's blue and vermilion, told apart by every reader; viridis rises evenly in lightness, also in grey.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#5f6b76"
COLOURS = "viridis"
_BINS = 40
_WIDTH = 7.0


def draw_stripes(layer: LayerStripes) -> Figure:
    """One gate: v over kept images (down) and channels (across), each channel's mean and spread above it.

    Args:
        layer: The gate's entry in a report.
    """
    figure = _figure(_WIDTH, 4.2)
    profile, stripes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
    # Steps from edge to edge of the columns below: the last value is drawn twice.
    edges = torch.arange(layer.channels + 1).numpy() - 0.5
    low, mean, high = (_closed(layer.mean + sign * layer.within_std).numpy() for sign in (-1, 0, 1))
    profile.fill_between(edges, low, high, step="post", color=VERMILION, alpha=0.35, linewidth=0)
    profile.step(edges, mean, where="post", color=BLUE, linewidth=0.8)
    profile.set_ylabel("mean ± std")
    picture = stripes.imshow(
        layer.sample.numpy() if len(layer.sample) else layer.mean[None].numpy(),
        aspect="auto",
        interpolation="nearest",
        cmap=COLOURS,
    )
    stripes.set_xlabel("channel")
    stripes.set_ylabel("image")
    figure.colorbar(picture, ax=[profile, stripes], label="scale v", pad=0.02)
    flag = f" ({layer.index_flag})" if layer.index_flag else ""
    figure.suptitle(
        f"{shown_name(layer.name)}: stripe index {layer.stripe_index:.3f}{flag}, "
        f"within-channel std {float(layer.within_std.mean()):.2g}",
        fontsize="medium",
        parse_math=False,
    )
    return figure


def draw_overview(report: StripeReport) -> Figure:
    """All gates: index and relative spread from input to output, and how the channels' standard deviations spread.

    Args:
        report: With at least one gate.
    """
    figure = _figure(_WIDTH, 6.4)
    index, ratio, spread = figure.subplots(3, 1)
    place = [float(number) for number in range(1, len(report.layers) + 1)]
    _points(index, place, [layer.stripe_index for layer in report.layers], [bool(x.index_flag) for x in report.layers])
    index.set_ylim(-0.03, 1.03)
    index.set_ylabel("stripe index")
    _points(ratio, place, [layer.within_over_mean for layer in report.layers], [False] * len(place))
    ratio.set_ylim(bottom=0)
    ratio.set_ylabel("std / mean |v|")
    ratio.set_xlabel("gate, from input to output")
    spread.hist(torch.cat([layer.within_std for layer in report.layers]).numpy(), bins=_BINS, color=BLUE)
    spread.set_xlabel("standard deviation of a channel over the images, all gates")
    spread.set_ylabel("channels")
    count = f"{len(report.layers)} gate" + ("s" if len(report.layers) > 1 else "")
    figure.suptitle(f"{report.model}: {count}, {report.images} images", fontsize="medium", parse_math=False)
    return figure


def draw_trajectory(trajectory: Trajectory) -> Figure:
    """Index, spread and first difference of every gate over the epochs, dark (input) to light (output).

    Args:
        trajectory: With at least one epoch and one gate.
    """
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    figure = _figure(_WIDTH, 6.4)
    panels = figure.subplots(3, 1, sharex=True)
    quantities = {
        "stripe_index": "stripe index",
        "within_std_mean": "within-channel std",
        "first_difference": "mean |v - v before|",
    }
    for axes, (quantity, label) in zip(panels, quantities.items(), strict=True):
        for place, gate in enumerate(trajectory.gates):
            colour = colormaps[COLOURS](0.9 * place / max(1, len(trajectory.gates) - 1))
            values = [float("nan") if value is None else value for value in trajectory.series(gate, quantity)]
            axes.plot(trajectory.epochs, values, color=colour, linewidth=1, marker="o", markersize=2)
        axes.set_ylabel(label)
    panels[0].set_ylim(-0.03, 1.03)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(
        f"{trajectory.model}: {len(trajectory.gates)} gates over training", fontsize="medium", parse_math=False
    )
    return figure


def _closed(values: Tensor) -> Tensor:
    return torch.cat([values, values[-1:]])


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _points(axes: Axes, place: list[float], values: list[Any], hollow: list[bool]) -> None:
    kept = [(x, y, empty) for x, y, empty in zip(place, values, hollow, strict=True) if y is not None]
    axes.plot([x for x, _, _ in kept], [y for _, y, _ in kept], color=GREY, linewidth=0.6, zorder=1)
    for empty in (False, True):
        chosen = [(x, y) for x, y, is_empty in kept if is_empty == empty]
        face = "white" if empty else BLUE
        axes.scatter([x for x, _ in chosen], [y for _, y in chosen], s=22, facecolor=face, edgecolor=BLUE, zorder=2)
