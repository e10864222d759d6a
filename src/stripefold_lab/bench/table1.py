"""The paper's table of costs: parameters and images per second with each attention, and with ASR folded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import stripefold as sf
from stripefold.atomic import write_text
from stripefold_lab.bench.report import Report
from stripefold_lab.bench.steps import inference, synthetic_batch
from stripefold_lab.bench.timing import Settings, compare
from stripefold_lab.models import create_model

NETWORK = "resnet164"
BACKBONE, COPY, FOLDED = "ResNet164", "identical copy", "ASR(SE), folded"


@dataclass(frozen=True, kw_only=True)
class ImageStatistics:
    """What the images of a data set look like."""

    name: str
    size: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class Printed:
    """What the paper prints: parameters in millions, images per second, their change in per cent; None is nothing."""

    parameters: float | None = None
    per_second: float | None = None
    change: float | None = None


NOTHING = Printed()
DATA = (ImageStatistics(name="CIFAR100", size=32, classes=100), ImageStatistics(name="STL10", size=96, classes=10))
ATTENTIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "+ IE": ("ie", {}),
    "+ SE": ("se", {}),
    "+ SRM": ("srm", {}),
    "+ DIA": ("dia", {}),
    "+ SPA": ("spa", {}),
    "+ CBAM": ("cbam", {"spatial": True, "bias": False}),
}
"""Row -> attention and the options that give the paper's counts: CBAM with its spatial half and without biases."""
PAPER: Mapping[str, Mapping[str, Printed]] = {
    "CIFAR100": {
        BACKBONE: Printed(parameters=1.73, per_second=1944),
        "+ IE": Printed(parameters=1.74, per_second=1505, change=-22.56),
        "+ SE": Printed(parameters=1.93, per_second=1469, change=-24.42),
        "+ SRM": Printed(parameters=1.76, per_second=1387, change=-28.64),
        "+ DIA": Printed(parameters=1.95, per_second=1092, change=-43.82),
        "+ SPA": Printed(parameters=3.86, per_second=1080, change=-44.45),
        "+ CBAM": Printed(parameters=1.93, per_second=793, change=-59.21),
    },
    "STL10": {
        BACKBONE: Printed(parameters=1.70, per_second=255),
        "+ IE": Printed(parameters=1.72, per_second=170, change=-33.26),
        "+ SE": Printed(parameters=1.91, per_second=173, change=-32.08),
        "+ SRM": Printed(parameters=1.74, per_second=162, change=-36.40),
        "+ DIA": Printed(parameters=1.92, per_second=154, change=-39.61),
        "+ SPA": NOTHING,
        "+ CBAM": Printed(parameters=1.90, per_second=127, change=-50.23),
    },
}
"""Huang et al. 2024, Table 1."""
COLUMNS = ("network", "parameters", "paper", "images/s", "change", "quartiles", "paper")


def build_networks(images: ImageStatistics, model: str = NETWORK) -> dict[str, nn.Module]:
    """Every row's network, with random weights from a fixed seed, in evaluation mode.

    Args:
        images: What they look like.
        model: Name of the network.
    """
    torch.manual_seed(0)
    backbone = create_model(model, num_classes=images.classes, image_size=images.size).eval()
    example = torch.randn(2, 3, images.size, images.size, generator=torch.Generator().manual_seed(0))
    networks = {BACKBONE: backbone, COPY: sf.detach(sf.attach(backbone, example=example))}
    for row, (attention, options) in ATTENTIONS.items():
        networks[row] = sf.attach(backbone, attention, form="dynamic", example=example, attention_options=options)
    networks[FOLDED] = sf.fold(sf.attach(backbone, "se", example=example).eval(), example=example)
    return {row: network.eval() for row, network in networks.items()}


def measure_table1(
    settings: Settings, *, batch: int = 8, data: Sequence[ImageStatistics] = DATA, model: str = NETWORK, date: str = ""
) -> list[Report]:
    """Time every row at one batch size, a report for each data set.

    Args:
        settings: How it is measured; memory is not.
        batch: Images per call.
        data: Whose sizes.
        model: Name of the network.
        date: Day of the measurement.

    Returns:
        Reports whose settings hold `data`, `batch`, `model` and `parameters` by row.
    """
    settings = replace(settings, memory=False)
    reports = []
    for images in data:
        networks = build_networks(images, model)
        parameters = {row: _count(network) for row, network in networks.items()}
        shown, _ = synthetic_batch((batch, 3, images.size, images.size), images.classes, settings)
        candidates = [inference(row, network, shown, settings) for row, network in networks.items()]
        report = compare(
            f"{model}, {images.name} sizes, batch {batch}, {images.size}x{images.size}", candidates, settings, date=date
        )
        about = {"data": images.name, "batch": batch, "model": model, "parameters": parameters}
        reports.append(replace(report, settings={**report.settings, **about}))
    return reports


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def table(report: Report) -> list[tuple[str, ...]]:
    """The rows below ``COLUMNS``: changes of the throughput against the backbone of the same round, in per cent.

    Args:
        report: One of what `measure_table1` gave.
    """
    settings = report.settings
    printed = PAPER.get(settings["data"], {}) if settings["model"] == NETWORK else {}
    rows: list[tuple[str, ...]] = []
    for row in report.rows:
        theirs = printed.get(row.name, NOTHING)
        first = row is report.rows[0]
        rows.append((
            settings["model"] if first else row.name,
            f"{settings['parameters'][row.name] / 1e6:.2f} M",
            "" if theirs.parameters is None else f"{theirs.parameters:.2f} M",
            f"{settings['batch'] / row.seconds.median:.1f}",
            "" if first else f"{_change(row.ratio.median):+.2f} %",
            "" if first else f"{_change(row.ratio.upper):+.2f} .. {_change(row.ratio.lower):+.2f} %",
            "" if theirs.change is None else f"{theirs.change:+.2f} %",
        ))  # fmt: skip
    return rows


def _change(ratio: float) -> float:
    """Of the throughput, in per cent, where a call takes ``ratio`` times as long."""
    return 100 * (1 / ratio - 1)


def save(reports: Sequence[Report], path: str | Path) -> None:
    """Write what was measured as JSON.

    Args:
        reports: What `measure_table1` gave.
        path: The file.
    """
    write_text(path, json.dumps({"reports": [report.to_dict() for report in reports]}, indent=2) + "\n")


def load(path: str | Path) -> list[Report]:
    """Read what `save` wrote.

    Args:
        path: The file.
    """
    return [Report.from_dict(each) for each in json.loads(Path(path).read_text(encoding="utf-8"))["reports"]]
