"""Backbone, + SE and ASR(SE), trained with and without noise in BatchNorm, under every disturbance.

Small networks trained briefly on a part of the CIFAR-10 images, on one thread of a CPU: it shows what the command gives
and which differences are larger than the spread over seeds at this size; it is no statement about networks of the
paper's size. Everything is a function of the seeds, so a rerun on the same machine gives the same figures.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from stripefold.robustness import RobustnessReport, measure_robustness, write_robustness
from stripefold.robustness.report import in_percent
from stripefold.training import TrainConfig, train

FOLDER = RESULTS / "robustness"
PAGE = Path(__file__).parents[1] / "docs" / "robustness.md"
FORMS = ("none", "dynamic", "static")
NOISES: dict[str, dict[str, Any]] = {
    "quiet": {},
    # The very noise of severity 3 of batch-random and batch-constant.
    "random": {"kind": "random", "scale": 0.3, "shift": 0.3},
    "constant": {"kind": "constant", "scale": 0.3, "shift": 0.3},
}
KINDS = {"quiet": None, "random": ["batch-constant", "batch-random"], "constant": ["batch-constant", "batch-random"]}
IMAGES = 500


def configure(data: Path, form: str, noise: str, seed: int, **changes: Any) -> TrainConfig:
    """The configuration of one run, without its folder."""
    values: dict[str, Any] = {
        "data": f"folder:{data}",
        "image_size": 32,
        "limit_train": 2500,
        "limit_test": IMAGES,
        "augmentation": "crop-flip",
        "model": "resnet8",
        "form": form,
        "epochs": 8,
        "batch_size": 64,
        "learning_rate": 0.1,
        "weight_decay": 5e-4,
        "warmup_epochs": 1,
        "batch_noise": NOISES[noise],
        "seed": seed,
        "threads": 1,
        "accelerator": "cpu",
        "tensorboard": False,
        "progress": "none",
    }
    return TrainConfig(**{**values, **changes})


def train_all(data: Path, runs: Path, noise: str, seeds: Sequence[int], **changes: Any) -> list[Path]:
    """Train what is not there yet; returns the runs' folders."""
    folders = []
    for form in FORMS:
        for seed in seeds:
            folder = runs / noise / f"{form}-{seed}"
            if not (folder / "summary.md").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                result = train(configure(data, form, noise, seed, run_dir=str(folder), **changes))
                print(f"{noise} {form} seed {seed}: {result.attached}, {result.seconds:.0f} s", flush=True)
            folders.append(folder)
    return folders


def measure(folders: Sequence[Path], noise: str, **changes: Any) -> RobustnessReport:
    """The report of one noise's runs, without paths of this machine."""
    report = measure_robustness(folders, kinds=KINDS[noise], **changes)
    kept = {label: tuple(str(Path(source).relative_to(source_root(folders))) for source in sources)
            for label, sources in report.sources.items()}  # fmt: skip
    equivalences = tuple(_without_path(each, folders) for each in report.equivalences)
    from dataclasses import replace

    return replace(report, data="CIFAR-10 images", sources=kept, equivalences=equivalences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder: train/CLASS/*, test/CLASS/*")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs; those that are there are kept")


if __name__ == "__main__":
    main()
