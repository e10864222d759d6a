"""Settle the network that tells the direction of text lines, and bake all nine of its gates.

    python -m benchmarks.settle.direction FILE.onnx --work WORK        # needs onnx2torch and Debian's fonts

Goes on where it was stopped; one JSON per way and seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

import stripefold as sf
from benchmarks.accuracy.train import describe_session
from benchmarks.onnx_ocr import directions
from benchmarks.settle.plan import COMMON, PLAN, RESULTS
from stripefold.atomic import atomic_path, write_text
from stripefold.baking.batches import Batches
from stripefold.baking.settle import Settling

BATCH = 16


class Lines:
    """Training lines in an order that follows from (seed, epoch)."""

    def __init__(self, pictures: Tensor, truth: Tensor, seed: int) -> None:
        self._pictures, self._truth, self._seed, self._epoch = pictures, truth, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1000 * self._seed + self._epoch)
        for chosen in torch.randperm(len(self._truth), generator=generator).split(BATCH):
            yield self._pictures[chosen], self._truth[chosen]


def as_torch(file: Path) -> nn.Module:
    """The network as a graph of torch; its weights, which are constants of the graph, become parameters."""
    from onnx2torch import convert

    proto = onnx.load(file)
    constants = [node for node in proto.graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    for node in constants:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        proto.graph.initializer.append(tensor)
        proto.graph.node.remove(node)
    model: nn.Module = convert(proto)
    return model.eval()


def likelihood(output: Tensor, truth: Tensor) -> Tensor:
    """Of probabilities (N, 2), which the network gives."""
    return F.nll_loss(output.clamp(min=1e-7).log(), truth)


def divergence(output: Tensor, given: Tensor) -> Tensor:
    """Between probabilities (N, 2)."""
    return F.kl_div(output.clamp(min=1e-7).log(), given, reduction="batchmean")


def pictures(work: Path, name: str, writer: int, count: int) -> tuple[Tensor, Tensor]:
    """Lines (N, 3, 48, 192) and their directions (N,), rendered once."""
    path = work / f"direction-{name}-{count}.npz"
    if not path.exists():
        made = directions(writer, count)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, pictures=np.concatenate(made.batches), truth=np.array(made.truth))
    held = np.load(path)
    return torch.from_numpy(held["pictures"]), torch.from_numpy(held["truth"]).long()


@torch.no_grad()
def accuracy(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """In percent."""
    hits = [(model(x).argmax(1) == y).sum() for x, y in zip(*(t.split(50) for t in test), strict=True)]
    return round(100 * float(torch.stack(hits).sum()) / len(test[1]), 4)


def run(network: nn.Module, plan: dict[str, Any], way: str, seed: int, work: Path) -> dict[str, Any]:
    """One way of one seed."""
    lines, test = (pictures(work, part, writer, plan[part]) for part, writer in (("train", 11), ("test", 12)))
    options = dict(plan["ways"][way])
    control, distill = options.pop("control", False), options.get("distill", 0)
    options |= {"divergence": divergence} if distill else {}
    options |= {"loss": likelihood} if distill < 1 else {}
    start = time.process_time()
    settle = sf.Settle(steps=plan["steps"], lr=plan["rate"], data=Lines(*lines, seed), seed=seed, **COMMON | options)
    found: dict[str, Any] = {
        "way": way,
        "seed": seed,
        "options": plan["ways"][way],
        "as_given": accuracy(network, test),
    }
    calibration = [lines[0][: plan["calibration"]]]
    if control:
        baked, _ = sf.bake(network, calibration, recalibrate=False)
        energy, _ = sf.bake(network, calibration, constants="energy", recalibrate=False)
        found |= {"constants": accuracy(baked, test), "constants_energy": accuracy(energy, test)}
        model = copy.deepcopy(network)
        Settling(model, (), {}, settle, Batches(settle.data, "lines", model)).run()
    else:
        model, report = sf.bake(network, calibration, settle=settle, recalibrate=False)
        found |= {"baked": len(report.baked), "gates": len(report.sites), "still": len(report.still_computed)}
    return found | {"accuracy": accuracy(model, test), "cpu_seconds": round(time.process_time() - start, 1)}


def main() -> int:
    """Way by way, each on all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = as_torch(options.file)
    plan = yaml.safe_load(PLAN.read_text(encoding="utf-8"))["direction"]
    session = describe_session(torch.device("cpu"))
    for way in plan["ways"]:
        for seed in plan["seeds"]:
            path = options.results / "direction" / f"{way}-seed{seed}.json"
            if not path.exists():
                found = run(network, plan, way, seed, options.work)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps({**found, "session": session}, indent=1) + "\n")
                print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
