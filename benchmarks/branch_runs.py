"""Branch blocks in ResNet-18, trained and folded through the command: do the stock keys come back, and the function?

    python -m benchmarks.branch_runs --data digits
    python -m benchmarks.branch_runs --data folder:PATH --name "CIFAR-10 images" --images 256

Every kind of block, and DBB with gates on the norms inside the blocks and on the norms behind them. For each:
`stripefold train`, `fold` and `verify`; then the file goes into the plain ResNet-18, strictly. Short runs,
which say that training moves every part and that folding is exact, not which kind of block is better. Nothing is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
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
from benchmarks.common import RESULTS
from stripefold.branches.block import BranchBlock
from stripefold_lab.cli.app import run
from stripefold_lab.training.build import build_model
from stripefold_lab.training.evaluation import evaluate
from stripefold_lab.training.loading import LoadedRun, load_run

FOLDER = RESULTS / "branches"
OPTIONS: dict[str, str] = {"large_kernel": "{small: 1}", "dilated": "{kernels: [[1, 1], [2, 2]]}"}
"""what these kinds need to stand for a 3x3 convolution"""
SIZES = {"digits": 16}
"""side of the images, where it is not 32: digits have 8"""
GATED = "dbb + ASR(SE) inside and on top"
WHERE = '["layer*.conv?.branches.*.bn", "layer*.bn2"]'
FLOAT64 = 1e-10


def words(case: str, data: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """The command that trains one case."""
    kind = case.partition(" ")[0]
    changes = {
        "image_size": SIZES.get(data, 32), "limit_train": options.images, "limit_test": options.images, "threads": 1,
        "accelerator": "cpu", "tensorboard": "false", "progress": "none", "schedule": "cosine", "warmup_epochs": 0,
    }  # fmt: skip
    if kind in OPTIONS:
        changes["branch_options"] = OPTIONS[kind]
    if case == GATED:
        changes["where"] = WHERE
    form = "static" if case == GATED else "none"
    given = ["--data", data, "--model", options.model, "--branch", kind, "--form", form]
    sizes = ["--epochs", str(options.epochs), "--batch-size", "32", "--learning-rate", "0.02"]
    return ["train", *given, *sizes, *(f"--set={k}={v}" for k, v in changes.items()), "--run-dir", str(folder)]


def measure(case: str, data: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train, fold and verify by the command, then look at what lies there."""
    with tempfile.TemporaryDirectory() as name:
        folder, file, told = Path(name) / "run", Path(name) / "plain.safetensors", io.StringIO()
        commands = [words(case, data, folder, options), ["fold", str(folder), "-o", str(file)]]
        with contextlib.redirect_stdout(told):
            codes = [run(command) for command in [*commands, ["verify", str(folder), str(file)]]]
        if any(codes):
            raise RuntimeError(f"{case}, {data}: the commands ended with {codes}\n{told.getvalue()}")
        trained, state = load_run(folder), load_file(file)
        stock = build_model(trained.config.with_overrides(branch=None, form="none"), trained.spec)
        stock.load_state_dict(state, strict=True)
        return {
            "case": case,
            "data": options.name or data,
            "images": options.images,
            "epochs": options.epochs,
            "blocks": sum(isinstance(module, BranchBlock) for module in trained.model.modules()),
            "gates": len(sf.scales(trained.model)) if case == GATED else 0,
            "losses": losses(folder),
            "accuracy": 100 * evaluate(folder).accuracy,
            "accuracy_folded": 100 * evaluate(file).accuracy,
            "error64": _error64(trained),
            "control64": _error64(trained, start=True),
            "unmoved": _unmoved(trained),
            "stock_keys": set(state) == set(stock.state_dict()),
        }


def losses(folder: Path) -> list[float]:
    """The training loss of every epoch."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


@torch.no_grad()
def _error64(trained: LoadedRun, *, start: bool = False) -> float:
    """Relative error of the float64 fold; with ``start``, the control: of the network as it was before training."""
    model = trained.model.double().eval()
    example = trained.spec.example(8).double()
    other = build_model(trained.config, trained.spec).double().eval() if start else model
    plain = sf.fold(other, example=example, check=False)
    expected = model(example)
    return float((plain(example) - expected).abs().max() / expected.abs().max())


def _unmoved(trained: LoadedRun) -> int:
    """How many parameters training has left where they started."""
    start = dict(build_model(trained.config, trained.spec).named_parameters())
    moved: dict[str, nn.Parameter] = dict(trained.model.float().named_parameters())
    return sum(torch.equal(start[name], parameter) for name, parameter in moved.items())


def page(model: str, result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    rows = result["rows"]
    lines = [
        f"# Branch blocks in {model}, through the command\n",
        "Written by `python -m benchmarks.branch_runs`, torch {torch}. Short runs: loss and accuracy, on at "
        "most as many test images, say that it trains, not which kind is better. The control is the error of the "
        "network as it was before training.\n".format(**result),
        "| blocks | data | images, epochs | blocks, gates | loss | accuracy, % | folded | error | control | keys |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row["case"], row["data"], f"{row['images']}, {row['epochs']}", f"{row['blocks']}, {row['gates']}",
            f"{row['losses'][0]:.2f} to {row['losses'][-1]:.2f}", f"{row['accuracy']:.2f}",
            f"{row['accuracy_folded']:.2f}", f"{row['error64']:.1e}",
            f"{row['control64']:.1e}", "yes" if row["stock_keys"] else "NO",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    unmoved = sum(row["unmoved"] for row in rows)
    return "\n".join(lines) + f"\n\nParameters that training left where they were, in all runs: {unmoved}.\n"


def keep(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Add rows to a result, and write its page beside it; those of the same case and data are replaced."""
    before = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    known = {(row["data"], row["case"]): row for row in [*before, *rows]}
    result = {"torch": torch.__version__, "stripefold": sf.__version__, "rows": list(known.values())}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (file.parent / "README.md").write_text(page(file.stem, result), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["digits"], help="digits, folder:PATH ...")
    parser.add_argument("--cases", nargs="+", default=[*sf.branch_names(), GATED])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--name", help="of the data, in the result")
    parser.add_argument("--images", type=int, default=512, help="to train and to test on")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result")
    options = parser.parse_args(arguments)
    for data in options.data:
        for case in options.cases:
            row = measure(case, data, options)
            print(row, flush=True)
            keep([row], options.out / f"{options.model}.json")
    print((options.out / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
