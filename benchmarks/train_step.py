"""What does ASR cost per training step? Forward, backward and optimiser, time and peak memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.common import Case, parse, publish, settings_from
from stripefold_lab.bench import compare, synthetic_batch, training_candidates
from stripefold_lab.models import create_model

ASR = "ASR(SE)"
QUICK = (Case(model="resnet8", batch=2, size=32, classes=10), Case(model="test_vit", batch=2, size=160))
CPU = (
    Case(model="resnet164", batch=32, size=32, classes=100, limits={ASR: {"ratio": 1.04, "peak_ratio": 1.02}}),
    Case(model="resnet164", batch=1, size=32, classes=100, limits={ASR: {"ratio": 1.20}}),
    Case(model="vit_small_patch16_224", batch=8, size=224, limits={ASR: {"ratio": 1.05, "peak_ratio": 1.02}}),
)
GPU = (
    Case(model="resnet50", batch=256, size=224, limits={ASR: {"ratio": 1.01}}),
    Case(model="resnet164", batch=128, size=32, classes=100, limits={ASR: {"ratio": 1.05}}),
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(__doc__, arguments)
    settings = settings_from(options)
    for case in QUICK if options.quick else CPU if options.device == "cpu" else GPU:
        torch.manual_seed(settings.seed)
        model = create_model(named(case.model), num_classes=case.classes, image_size=case.size)
        batch = synthetic_batch((case.batch, 3, case.size, case.size), case.classes, settings)
        candidates = training_candidates(model, batch, settings)
        title = f"Training step: {case.model}, batch {case.batch}, {case.size}x{case.size}"
        report = compare(title, candidates, settings, date=options.date).with_limits(case.limits)
        publish(report, f"train_step-{case.slug}", options)


def named(model: str) -> str:
    """timm's resnet50, not a network of ours."""
    return "timm/resnet50" if model == "resnet50" else model


if __name__ == "__main__":
    main()
