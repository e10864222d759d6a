"""What observing costs on top of plain inference: by hooks where a module returns the gate, else by a dispatch mode.

Each sample is a whole call of `observe` over several batches, the trace that finds the gates included.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import stripefold as sf
from benchmarks.common import Case, parse, publish, settings_from
from stripefold_lab.bench import Candidate, Report, Settings, compare, synthetic_batch
from stripefold_lab.models import create_model

BATCHES, GPU_BATCHES = 8, 50
QUICK = (Case(model="resnet8+se", batch=4, size=32, classes=10),)
# "+se": the squeeze-and-excitation of our own zoo, whose gate no module returns: its cost is shown without a claim.
CPU = (
    Case(model="timm/seresnet50", batch=32, size=128, limits={"observe": {"ratio": 1.10}}),
    Case(model="timm/efficientnet_b0", batch=32, size=128, limits={"observe": {"ratio": 1.10}}),
    Case(model="resnet56+se", batch=32, size=32, classes=10),
)
GPU = (
    Case(model="timm/seresnet50", batch=32, size=224, limits={"observe": {"ratio": 1.10}}),
    Case(model="timm/efficientnet_b0", batch=32, size=224, limits={"observe": {"ratio": 1.10}}),
    Case(model="resnet56+se", batch=128, size=32, classes=10),
)


def candidates_for(model: nn.Module, batches: list[Tensor]) -> list[Candidate]:
    """Plain inference over the batches, an identical copy, and observing them."""

    def infer(network: nn.Module) -> None:
        with torch.no_grad():
            for images in batches:
                network(images)

    twin = copy.deepcopy(model)
    return [
        Candidate(name="plain inference", run=lambda: infer(model)),
        Candidate(name="identical copy", run=lambda: infer(twin)),
        Candidate(name="observe", run=lambda: sf.observe(model, batches)),
    ]


def measure(case: Case, batches: int, settings: Settings, date: str) -> Report:
    """One model at one batch size."""
    torch.manual_seed(settings.seed)
    name, _, attention = case.model.partition("+")
    model = create_model(name, num_classes=case.classes, image_size=case.size)
    if attention:
        sf.attach_(model, attention, form="dynamic")
    model = model.eval().to(settings.device)
    images = [synthetic_batch((case.batch, 3, case.size, case.size), case.classes, settings)[0] for _ in range(batches)]
    gates = len(sf.observe(model, images[0]).layers)
    title = f"Observe: {case.model}, {gates} gates, {batches} batches of {case.batch}, {case.size}x{case.size}"
    return compare(title, candidates_for(model, images), settings, date=date).with_limits(case.limits)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(__doc__, arguments)
    settings = settings_from(options)
    cases = QUICK if options.quick else CPU if options.device == "cpu" else GPU
    batches = 2 if options.quick else BATCHES if options.device == "cpu" else GPU_BATCHES
    for case in cases:
        report = measure(case, batches, settings, options.date)
        publish(report, f"observe_time-{case.slug.replace('/', '_').replace('+', '_')}", options)


if __name__ == "__main__":
    main()
