"""How long `fold_(check=False)` takes, and how much memory it allocates on top of the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import stripefold as sf
from benchmarks.common import parse, publish, settings_from
from stripefold_lab.bench import measure_folding
from stripefold_lab.models import create_model

QUICK = {"resnet8": 1.0}
SECONDS = {"timm/resnet50": 0.1, "vit_large_patch16_224": 2.0}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(__doc__, arguments)
    settings = settings_from(options)
    for name, limit in (QUICK if options.quick else SECONDS).items():
        torch.manual_seed(settings.seed)
        attached = sf.attach_(create_model(name), "se").to(options.device)
        report = measure_folding(f"fold_: {name}", attached, settings, date=options.date)
        # What is written over is kept until the call is done, so that a failure leaves the model as it was. Beside that
        # one layer at a time is there in float64, scaled and not.
        memory = report.settings["written_bytes"] + 4.0 * report.settings["largest_tensor_bytes"]
        report = report.with_limits({"fold_": {"seconds": limit, "peak_bytes": memory}})
        publish(report, f"fold_time-{name.rpartition('/')[2]}", options)


if __name__ == "__main__":
    main()
