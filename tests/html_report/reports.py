"""Made-up observations: gates of chosen widths, striped more or less."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stripefold.stripe.discover import NotAGate
from stripefold.stripe.layer import LayerStripes
from stripefold.stripe.report import StripeReport
from stripefold.stripe.trajectory import Trajectory


def make_layer(name: str, values: torch.Tensor, *, depth: float = 0.0, **more) -> LayerStripes:
    """The entry of a gate that gave the rows of (n, C)."""
    exact = values.double()
    mean = exact.mean(0)
    return LayerStripes(
        name=name, kind="SqueezeExcite", depth=depth, channels=values.shape[1], images=len(values), mean=mean,
        m2=(exact - mean).square().sum(0), sample=values.float(), **more,
    )  # fmt: skip


def make_report(widths: Sequence[int] = (8, 16, 32), *, images: int = 24, noise: float = 0.3, seed: int = 0, **more):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for place, width in enumerate(widths):
        columns = torch.randn(width, generator=torch.Generator().manual_seed(place))
        values = torch.sigmoid(columns + noise * (1 + place) * torch.randn(images, width, generator=generator))
        layers.append(make_layer(f"stage.{place}.se", values, depth=place / max(1, len(widths) - 1)))
    spatial = NotAGate(name="stage.0.cbam", shape=(2, 8, 7, 7), factor=(2, 1, 7, 7), why="one factor per position")
    about = {"others": (spatial,), "uncalled": ("head.unused",), "versions": {"stripefold": "0.1.0", "torch": "2.6"}}
    return StripeReport(layers=tuple(layers), images=images, model="TinyNet", **{**about, **more})


def make_trajectory(widths: Sequence[int] = (8, 16, 32), epochs: Sequence[int] = (0, 2, 4, 6)) -> Trajectory:
    trajectory = Trajectory()
    for epoch in epochs:
        trajectory.add(epoch, make_report(widths, noise=0.1 + 1 / (1 + epoch), seed=epoch))
    return trajectory
