"""The deployed network step by step: BatchNorm kept, folded, fused, channels last, compiled, onnxruntime."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import Case, parse, publish, settings_from
from stripefold_lab.bench import Report
from stripefold_lab.bench.chart import draw_deploy
from stripefold_lab.bench.deploy import LAST, measure_deploy
from stripefold_lab.models import create_model


def claimed(factor: float) -> dict[str, dict[str, float]]:
    """The limit of a row that is to have `factor` times the throughput of the reference's form."""
    return {LAST: {"ratio": 1 / factor}}


QUICK = (Case(model="resnet8", batch=2, size=16, classes=10),)
# What is claimed, the CIFAR network of the paper; the others show where it does and does not carry over.
CPU = (
    Case(model="resnet164", batch=1, size=32, classes=100, limits=claimed(1.3)),
    Case(model="resnet164", batch=32, size=32, classes=100, limits=claimed(1.5)),
    Case(model="timm/resnet50", batch=1, size=224),
    Case(model="timm/resnet50", batch=32, size=224),
    Case(model="convnext_tiny", batch=1, size=224),
    Case(model="convnext_tiny", batch=32, size=224),
    Case(model="mobilenetv3_large_100", batch=1, size=224),
    Case(model="mobilenetv3_large_100", batch=32, size=224),
)
GPU = tuple(Case(model=case.model, batch=case.batch, size=case.size, classes=case.classes) for case in CPU)


def main(arguments: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    compiled, words = "--no-compile" not in words, [word for word in words if word != "--no-compile"]
    options = parse(f"{__doc__} Goes on where a run of the same day was stopped.", words)
    settings = settings_from(options)
    reports: dict[str, list[Report]] = {}
    for case in QUICK if options.quick else CPU if options.device == "cpu" else GPU:
        name = f"deploy-{case.slug.replace('/', '_')}"
        report = kept_report(name, options)
        if report is None:
            torch.manual_seed(settings.seed)
            model = create_model(case.model, num_classes=case.classes, image_size=case.size)
            title = f"Deployed: {case.model}, batch {case.batch}, {case.size}x{case.size}"
            shape = (case.batch, 3, case.size, case.size)
            report = measure_deploy(title, model, shape, settings, compiled=compiled, date=options.date)
            report = report.with_limits(case.limits)
            publish(report, name, options)
        reports.setdefault(case.model, []).append(report)
    if not options.quick:
        for model_name, measured in reports.items():
            draw_deploy(measured, options.output / f"deploy-{model_name.rpartition('/')[2]}-{_kind(options)}.png")


def kept_report(name: str, options: argparse.Namespace) -> Report | None:
    """What an earlier run of this day has kept of a case."""
    path: Path = options.output / f"{name}-{_kind(options)}.json"
    if options.quick or not path.exists():
        return None
    report = Report.load(path)
    return report if report.date == options.date else None


def _kind(options: argparse.Namespace) -> str:
    return str(options.device).partition(":")[0]


if __name__ == "__main__":
    main()
