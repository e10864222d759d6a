"""Folded costs what the backbone costs: inference of plain, copy, + SE, ASR attached, folded, folded and fused."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.common import Case, parse, publish, settings_from
from stripefold_lab.bench import compare, inference_candidates, synthetic_batch
from stripefold_lab.models import create_model

QUICK = (Case(model="resnet8", batch=2, size=32, classes=10),)
CPU = (
    Case(model="resnet164", batch=32, size=32, classes=100),
    Case(model="resnet164", batch=1, size=32, classes=100),
    Case(model="timm/resnet50", batch=8, size=224),
    Case(model="vit_small_patch16_224", batch=8, size=224),
)
GPU = (
    Case(model="timm/resnet50", batch=256, size=224),
    Case(model="resnet164", batch=128, size=32, classes=100),
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(__doc__, arguments)
    settings = settings_from(options)
    for case in QUICK if options.quick else CPU if options.device == "cpu" else GPU:
        torch.manual_seed(settings.seed)
        model = create_model(case.model, num_classes=case.classes, image_size=case.size)
        images, _ = synthetic_batch((case.batch, 3, case.size, case.size), case.classes, settings)
        candidates = inference_candidates(model, images, settings)
        title = f"Inference: {case.model}, batch {case.batch}, {case.size}x{case.size}"
        report = compare(title, candidates, settings, date=options.date)
        # No dearer than the backbone, as far as the noise of an identical copy lets us see.
        noise = max(1.0, report.row("identical copy").ratio.upper)
        report = report.with_limits({"ASR(SE), folded": {"ratio": noise, "peak_ratio": 1.0}})
        publish(report, f"inference-{case.slug.replace('/', '_')}", options)


if __name__ == "__main__":
    main()
