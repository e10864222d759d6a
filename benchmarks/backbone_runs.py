"""ViT and ConvNeXt with ASR, trained and folded through the command: do they train, and is the fold exact?

    python -m benchmarks.backbone_runs --data folder:PATH --name "CIFAR-10 images"

For each recipe `stripefold train` for one epoch, `fold` and `verify`; then the file goes into the plain network,
strictly, and the fold is measured once more in float64. One epoch says that training moves every gate and that folding
is exact, not how good these networks are. Nothing is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import stripefold as sf
from benchmarks.branch_runs import losses
from benchmarks.common import RESULTS
from stripefold_lab.cli.app import run
from stripefold_lab.training.build import build_backbone, build_model
from stripefold_lab.training.evaluation import evaluate
from stripefold_lab.training.loading import LoadedRun, load_run

FOLDER = RESULTS / "backbones"
RECIPES = ("small-vit", "small-convnext")


def words(recipe: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """The command that trains one recipe for one epoch; everything else is the recipe's own."""
    changes: dict[str, object] = {
        "threads": 1, "accelerator": "cpu", "tensorboard": "false", "progress": "none", "limit_test": options.tested
    }  # fmt: skip
    if options.images is not None:
        changes["limit_train"] = options.images
    given = ["--data", options.data, "--epochs", "1", *(f"--set={name}={value}" for name, value in changes.items())]
    return ["train", "--config", recipe, *given, "--run-dir", str(folder)]


def measure(recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train, fold and verify by the command, then look at what lies there."""
    with tempfile.TemporaryDirectory() as name:
        folder, file, told = Path(name) / "run", Path(name) / "plain.safetensors", io.StringIO()
        commands = [words(recipe, folder, options), ["fold", str(folder), "-o", str(file)]]
        with contextlib.redirect_stdout(told):
            codes = [run(command) for command in [*commands, ["verify", str(folder), str(file)]]]
        if any(codes):
            raise RuntimeError(f"{recipe}: the commands ended with {codes}\n{told.getvalue()}")
        trained, state = load_run(folder), load_file(file)
        plain = build_backbone(trained.config, trained.spec)
        plain.load_state_dict(state, strict=True)
        return {
            "recipe": recipe,
            "model": trained.config.model,
            "data": options.name or options.data,
            "images": options.images or "all",
            "tested": options.tested,
            "classes": len(trained.spec.classes),
            "sites": len(sf.scales(trained.model)),
            "loss": losses(folder)[-1],
            "accuracy": 100 * evaluate(folder).accuracy,
            "accuracy_folded": 100 * evaluate(file, data=trained.config.data).accuracy,
            "least_move_of_a_gate": _least_move(trained),
            "stock_keys": set(state) == set(plain.state_dict()),
            **_errors(trained),
        }


def _least_move(trained: LoadedRun) -> float:
    """The gate that moved least: the largest difference of its scale to that at the start."""
    start = sf.scales(build_model(trained.config, trained.spec))
    return min(float((v - start[name]).abs().max()) for name, v in sf.scales(trained.model).items())


def _errors(trained: LoadedRun) -> dict[str, float]:
    """Relative error of the float64 fold, and of the network without its gates: the control."""
    model: nn.Module = trained.model.double().eval()
    example = trained.spec.example(8).double()
    plain, bare = sf.fold(model, example=example, check=False), sf.detach(model)
    pairs = {"error64": plain, "control64": bare}
    return {
        name: sf.verify(model, other, example, raise_on_mismatch=False).error for name, other in pairs.items()
    }  # fmt: skip


def page(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "# ViT and ConvNeXt with ASR(SE), through the command\n",
        "Written by `python -m benchmarks.backbone_runs`, torch {torch}. One epoch: it says that training moves every "
        "gate and that folding is exact, not how good the networks are. The control is the error of the trained "
        "network without its gates.\n".format(**result),
        "| recipe | network | data | training images | sites | least move of a gate | accuracy, % | folded "
        "| error | control | keys |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = (
            f"`{row['recipe']}`", f"`{row['model']}`", row["data"], str(row["images"]), str(row["sites"]),
            f"{row['least_move_of_a_gate']:.1e}", f"{row['accuracy']:.2f} of {row['tested']}",
            f"{row['accuracy_folded']:.2f}", f"{row['error64']:.1e}", f"{row['control64']:.1e}",
            "stock" if row["stock_keys"] else "OTHERS",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def keep(row: dict[str, Any], folder: Path) -> None:
    """Add a row to the result and write its page; one of the same recipe and data is replaced."""
    file = folder / "backbones.json"
    before = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    known = {(each["data"], each["recipe"]): each for each in [*before, row]}
    result = {"torch": torch.__version__, "stripefold": sf.__version__, "rows": list(known.values())}
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(page(result), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder:PATH ...")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--name", help="of the data, in the result")
    parser.add_argument("--images", type=int, help="to train on; all where not given")
    parser.add_argument("--tested", type=int, default=1000, help="images to test on")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result")
    options = parser.parse_args(arguments)
    for recipe in options.recipes:
        keep(measure(recipe, options), options.out)
    print((options.out / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
