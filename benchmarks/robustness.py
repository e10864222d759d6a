"""Backbone, + SE and ASR(SE), trained with and without noise in BatchNorm, under every disturbance.

ResNet-20 on 15,000 of the CIFAR-10 images, ten epochs under autocast to bfloat16, on one thread of a CPU: it shows
which differences are larger than the spread over the seeds at this size. It says nothing about networks of the paper's
size. Runs that are there already are taken as they are.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from stripefold_lab.robustness import RobustnessReport, measure_robustness, write_robustness
from stripefold_lab.robustness.report import CLEAN, in_percent
from stripefold_lab.training import TrainConfig, train

FOLDER = RESULTS / "robustness"
PAGE = Path(__file__).parents[1] / "docs" / "guides" / "robustness.md"
MARKS = re.compile(r"(<!-- results: [^>]*-->\n).*?(<!-- end of results -->)", re.DOTALL)
NOISES: dict[str, dict[str, Any]] = {
    "quiet": {},
    # The very noise of severity 3 of batch-random.
    "random": {"kind": "random", "scale": 0.3, "shift": 0.3},
}
FORMS = {"quiet": ("none", "dynamic", "static"), "random": ("none", "static")}
SEEDS = (0, 1, 2)
BATCH = ["batch-constant", "batch-random"]
KINDS = {"quiet": None, "random": BATCH}
SEVERITIES = (1, 3, 5)
IMAGES = 500
"""Of the 1,000 that the runs were tested on: the first of the same random choice."""


def configure(data: Path, form: str, noise: str, seed: int, **changes: Any) -> TrainConfig:
    """The configuration of one run, without its folder."""
    values: dict[str, Any] = {
        "data": f"folder:{data}",
        "image_size": 32,
        "limit_train": 15_000,
        "limit_test": 1000,
        "augmentation": "crop-flip",
        "model": "resnet20",
        "form": form,
        "epochs": 10,
        "batch_size": 128,
        "precision": "bf16-mixed",
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


def train_all(data: Path, runs: Path, noise: str, **changes: Any) -> list[Path]:
    """Train what is not there yet; returns the runs' folders."""
    folders = []
    for form in FORMS[noise]:
        for seed in SEEDS:
            folder = runs / noise / f"{form}-{seed}"
            if not (folder / "summary.md").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                result = train(configure(data, form, noise, seed, run_dir=str(folder), **changes))
                print(f"{noise} {form} seed {seed}: {result.attached}, {result.seconds:.0f} s", flush=True)
            folders.append(folder)
    return folders


def measure(
    folders: Sequence[Path], noise: str, severities: Sequence[int] = SEVERITIES, images: int = IMAGES
) -> RobustnessReport:
    """The report of one noise's runs, which names no path of this machine."""
    found = measure_robustness(folders, kinds=KINDS[noise], severities=severities, images=images)
    root = folders[0].parents[1]
    return replace(
        found,
        data="CIFAR-10 images",
        sources={label: tuple(_below(root, each) for each in sources) for label, sources in found.sources.items()},
        equivalences=tuple(replace(each, source=_below(root, each.source)) for each in found.equivalences),
    )


def _below(root: Path, source: str) -> str:
    return Path(source).relative_to(root).as_posix()


def read(folder: Path = FOLDER) -> dict[str, RobustnessReport]:
    """The kept reports, by the noise their networks were trained under."""
    paths = {noise: folder / noise / "robustness.json" for noise in NOISES}
    texts = {noise: path.read_text(encoding="utf-8") for noise, path in paths.items() if path.is_file()}
    return {noise: RobustnessReport.from_dict(json.loads(text)) for noise, text in texts.items()}


def render(reports: dict[str, RobustnessReport]) -> str:
    """The kept reports as Markdown: every disturbance, then what training under noise changes."""
    quiet = reports["quiet"]
    lines = [_row(quiet.columns()), _row(["---"] * len(quiet.columns())), *map(_row, quiet.rows())]
    if len(reports) > 1:
        lines += ["", *_under_noise(reports)]
    return "\n".join(lines) + "\n"


def _under_noise(reports: dict[str, RobustnessReport]) -> list[str]:
    """What training under noise changes, for the noise in BatchNorm alone."""
    head = ["trained under", "network", "clean", *BATCH]
    lines = [_row(head), _row(["---"] * len(head))]
    for noise, report in reports.items():
        for network in report.networks:
            cells = [in_percent(report.average(network, kind)) for kind in (CLEAN, *BATCH)]
            lines.append(_row([f"{noise} noise" if NOISES[noise] else "no noise", network, *cells]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_page(reports: dict[str, RobustnessReport], page: Path = PAGE) -> None:
    """Put the tables between their marks."""
    text = page.read_text(encoding="utf-8")
    page.write_text(MARKS.sub(lambda marks: marks[1] + render(reports) + marks[2], text), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder: train/CLASS/*, test/CLASS/*")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--noises", default=",".join(NOISES), help="which noises to train under, with commas")
    parser.add_argument("--quick", action="store_true", help="one epoch of 128 images, nothing kept: does it run?")
    options = parser.parse_args(arguments)
    changes = {"limit_train": 128, "limit_test": 16, "epochs": 1} if options.quick else {}
    for noise in options.noises.split(","):
        folders = train_all(options.data, options.runs, noise, **changes)
        report = measure(folders, noise, *(((5,), 16) if options.quick else (SEVERITIES, IMAGES)))
        print(report, end="\n\n", flush=True)
        if not options.quick:
            write_robustness(report, options.output / noise)
    if not options.quick and options.output == FOLDER:
        write_page(read())


if __name__ == "__main__":
    main()
