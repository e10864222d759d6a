"""Segmentation and detection with ASR on drawn shapes: do they learn, do the gates count, is folding exact?

Every recipe is trained through the library's own `train`. Time is CPU time of the process, which does not depend on who
else computes on the machine; with one thread it is an upper bound of the wall-clock time on a quiet one.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import re
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import stripefold as sf
from benchmarks.common import RESULTS
from stripefold_lab.training import TrainResult, load_config, train
from stripefold_lab.training.agreement import verify_detector
from stripefold_lab.training.build import build_model
from stripefold_lab.training.data import load_data
from stripefold_lab.training.evaluation import evaluate_model

CLAIMS = {"shapes-segmentation": 0.6, "shapes-lraspp": 0.6, "shapes-detection": 0.5, "shapes-ssdlite": 0.5}
"""Recipe -> least score on held-out images: mIoU or mAP50."""
PAGE = Path(__file__).parents[1] / "docs" / "guides" / "tasks.md"
MARKS = re.compile(r"(<!-- results: [^>]*-->\n).*?(<!-- end of results -->)", re.DOTALL)
SECONDS = 600.0
FLOAT64 = 1e-10


def measure(recipe: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """Train one recipe and measure everything that is claimed about it."""
    config = load_config(recipe, run_dir=str(folder / recipe), tensorboard=False, accelerator="cpu", **changes)
    before = time.process_time()
    result = train(config)
    seconds = time.process_time() - before
    data = load_data(config)
    detached = evaluate_model(sf.detach(result.model), data, config, kind="backbone", source="")
    start = sf.scales(build_model(config, data.spec))
    moved = {name: float((v - start[name]).abs().max()) for name, v in sf.scales(result.model).items()}
    return {
        "recipe": recipe,
        "model": config.model,
        "score": result.attached.score,
        "score_folded": result.deployed.score,
        "score_detached": detached.score,
        "measures": dict(result.attached.measures),
        "sites": len(moved),
        "least_move_of_a_gate": min(moved.values()),
        "cpu_seconds": seconds,
        "float32": str(result.verification),
        **agreement(result),
        "float64_error": float64_error(result.model, result.example),
    }


def agreement(result: TrainResult) -> dict[str, Any]:
    """Of detectors: how far the final detections of the folded model agree."""
    if result.config.task != "detection":
        return {}
    report = verify_detector(result.model, result.folded, result.example)
    return {"detections": report.detections, "agreeing": report.agreeing}


def float64_error(model: nn.Module, images: torch.Tensor) -> float:
    """Relative error of everything the folded model returns, boxes, scores and labels included, in float64."""
    exact = copy.deepcopy(model).double()
    folded = sf.fold(exact, check=False, example=images.double())
    return sf.verify(exact, folded, images.double(), raise_on_mismatch=False).error


def missed(found: dict[str, Any], least: float) -> list[str]:
    """The claims that do not hold."""
    holds = {
        f"score >= {least}": found["score"] >= least,
        "the folded model scores the same": abs(found["score"] - found["score_folded"]) <= 1e-3,
        "the score falls without the gates": found["score_detached"] < found["score"],
        "every gate moved": found["least_move_of_a_gate"] > 1e-3,
        f"float64 error <= {FLOAT64}": found["float64_error"] <= FLOAT64,
        "all detections agree": found.get("agreeing", 1.0) == 1.0,
        f"at most {SECONDS:.0f} s": found["cpu_seconds"] <= SECONDS,
    }
    return [claim for claim, held in holds.items() if not held]


def render(results: list[dict[str, Any]]) -> str:
    """The kept results as a Markdown table."""
    lines = [
        "| recipe | held-out images | without its gates | folded | error in float64 | agreeing detections | CPU time |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in results:
        word = "mAP50" if "map50" in found["measures"] else "mIoU"
        agreeing = f"{found['agreeing']:.2%} of {found['detections']}" if "agreeing" in found else ""
        lines.append(
            f"| `{found['recipe']}` | {word} {found['score']:.4f} | {found['score_detached']:.4f} | "
            f"{found['score_folded']:.4f} | {found['float64_error']:.0e} | {agreeing} | {found['cpu_seconds']:.0f} s |"
        )
    return "\n".join(lines) + "\n"


def write_page(page: Path = PAGE, results: Path = RESULTS / "tasks") -> None:
    """Put the table between its marks."""
    found = [json.loads((results / f"{recipe}.json").read_text(encoding="utf-8")) for recipe in CLAIMS]
    text = page.read_text(encoding="utf-8")
    page.write_text(MARKS.sub(lambda marks: marks[1] + render(found) + marks[2], text), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=list(CLAIMS), help="which ones; all if none is named")
    parser.add_argument("--quick", action="store_true", help="64 images, one epoch, nothing kept: does it run?")
    parser.add_argument("--output", type=Path, default=RESULTS / "tasks")
    options = parser.parse_args()
    changes = {"limit_train": 64, "limit_test": 16, "epochs": 1} if options.quick else {}
    for recipe in options.recipes:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(recipe, Path(folder), **changes)
        found["missed"] = missed(found, CLAIMS[recipe])
        found["environment"] = {
            "torch": torch.__version__, "torchvision": version("torchvision"), "python": platform.python_version(),
            "threads": load_config(recipe).threads, "date": date.today().isoformat(),
        }  # fmt: skip
        print(json.dumps(found, indent=2), flush=True)
        if not options.quick:
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / f"{recipe}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if not options.quick and options.output == RESULTS / "tasks":
        write_page()


if __name__ == "__main__":
    main()
