"""Made-up observations: gates of chosen widths, striped more or less."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stripefold.baking.report import BakeReport, SiteResult, Speed
from stripefold.folding.verify import EquivalenceReport
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


def make_site(name: str, outcome: str = "folded", **more) -> SiteResult:
    about = {"kind": "SqueezeExcite", "channels": 8, "stripe_index": 0.9, "within_over_mean": 0.1, "prior": 0.01,
             "alone": None, "cumulative": None, "place": "", "why": ""}  # fmt: skip
    return SiteResult(name=name, outcome=outcome, **{**about, **more})  # type: ignore[arg-type]


def bake_report(**more) -> BakeReport:
    """Four gates under a budget of one point; the last one, which costs four, stays."""
    sites = (
        make_site("a.se", alone=90.0, cumulative=90.0, place="a.conv", why="backward, into the layer in front"),
        make_site("b.se", "multiply", alone=89.5, cumulative=89.5, why="a ReLU6 lies behind it"),
        make_site("c.se", alone=90.5, cumulative=90.5, place="c.conv", why="backward, into the layer in front"),
        make_site(
            "d.se",
            "dynamic",
            alone=86.0,
            cumulative=85.0,
            why="over the budget: with it the metric would fall by more than 1",
        ),
    )
    about = {"model": "TinyNet", "sites": sites, "constants": "mean", "to": "plain", "images": 64, "max_drop": 1.0,
             "metric": "accuracy in percent", "before": 90.0, "constant": 89.5, "after": 89.5,
             "versions": {"stripefold": "0.1.0"},
             "speed": Speed(before=0.02, after=0.016, batch=32, device="cpu")}  # fmt: skip
    return BakeReport(**{**about, **more})


def verify_report(**more) -> EquivalenceReport:
    layers = (("conv", 0.0), ("bn", 2e-7), ("fc", 3e-6))
    about = {"passed": True, "dtype": "float32", "error": 1e-7, "reference_error": 2e-7, "tolerance": 1e-6,
             "worst_output": "output", "worst_layer": ("fc", 3e-6), "layers": layers, "agreement": 1.0}  # fmt: skip
    return EquivalenceReport(**{**about, **more})
