"""Baked costs what the backbone without attention costs: inference with dynamic attention, baked, and baked and fused.

The weights are random: how long a network takes does not depend on them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

import stripefold as sf
from benchmarks.common import Case, parse, publish, settings_from
from stripefold_lab.bench import compare, inference, synthetic_batch
from stripefold_lab.models import create_model

QUICK = (Case(model="resnet8+se", batch=2, size=32, classes=10),)
CPU = (
    Case(model="resnet56+se", batch=32, size=32, classes=10),
    Case(model="timm/seresnet50", batch=8, size=224),
    Case(model="timm/efficientnet_b0", batch=8, size=224),
    Case(model="timm/mobilenetv3_large_100", batch=8, size=224),
    Case(model="timm/mobilenetv3_large_100", batch=1, size=224),
    Case(model="timm/regnety_002", batch=8, size=224),
)
GPU = (
    Case(model="resnet56+se", batch=128, size=32, classes=10),
    Case(model="timm/seresnet50", batch=256, size=224),
    Case(model="timm/seresnet50", batch=1, size=224),
    Case(model="timm/efficientnet_b0", batch=256, size=224),
    Case(model="timm/efficientnet_b0", batch=1, size=224),
)


def build(case: Case) -> nn.Module:
    """The network with its dynamic attention; one of the CIFAR networks gets SE on every residual branch."""
    name, _, attention = case.model.partition("+")
    model = create_model(name, num_classes=case.classes, image_size=case.size)
    if attention:
        sf.attach_(model, attention, form="dynamic")
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(__doc__, arguments)
    settings = settings_from(options)
    for case in QUICK if options.quick else CPU if options.device == "cpu" else GPU:
        torch.manual_seed(settings.seed)
        model = build(case)
        images, _ = synthetic_batch((case.batch, 3, case.size, case.size), case.classes, settings)
        example = images[:1].cpu().repeat(2, 1, 1, 1)
        baked, report = sf.bake(model, example, recalibrate=False)
        candidates = {
            "dynamic attention": model,
            "identical copy": copy.deepcopy(model),
            "baked": baked,
            "baked and fused": sf.fold(baked, fuse=True, example=example),
        }
        done = f"{len(report.baked)} of {len(report.sites)} gates baked"
        title = f"Baking: {case.model}, {done}, batch {case.batch}, {case.size}x{case.size}"
        steps = [inference(name, candidate, images, settings) for name, candidate in candidates.items()]
        made = compare(title, steps, settings, date=options.date)
        # Never dearer than with its attention, as far as the noise of an identical copy lets us see.
        noise = max(1.0, made.row("identical copy").ratio.upper)
        publish(made.with_limits({"baked": {"ratio": noise}}), f"bake-{case.slug.replace('/', '_')}", options)


if __name__ == "__main__":
    main()
