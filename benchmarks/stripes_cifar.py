"""Do the gates of an SE-ResNet become stripes while it trains? Networks trained on CIFAR-10, observed at every epoch.

    python -m benchmarks.stripes_cifar --data FOLDER_OR_TAR --out runs/cifar --epochs 40

For every model and seed it trains the network with SE behind the last norm of each branch (``attach_(form="dynamic")``)
and the bare backbone, and keeps the weights, the accuracy after every epoch and the gates' moments on 512 fixed test
images. `benchmarks.bake_cifar` goes on from there.

Recipe: the reference code's (SGD 0.1, momentum 0.9, weight decay 1e-4, batches of 128, crop and flip), compressed:
a cosine in place of its 164 epochs in steps. 5,000 of the training images are held out. Parameters are float32;
convolutions use TF32 where the device has it. The runs go abreast, each on a stream of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import tarfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import stripefold as sf
from benchmarks.cifar_data import Cifar, Normalise, augment, load_cifar
from benchmarks.stripes_record import StripeRecord
from benchmarks.train_graph import Step
from stripefold_lab import create_model
from stripefold_lab.bench.environment import describe_environment

BATCH, RATE, MOMENTUM, DECAY = 128, 0.1, 0.9, 1e-4
OBSERVED = 512


@dataclass(frozen=True)
class Plan:
    """Which network one run trains."""

    model: str
    attention: str
    seed: int

    @property
    def name(self) -> str:
        """Name for a folder."""
        return f"{self.model}-{self.attention}-seed{self.seed}"

    def build(self) -> nn.Module:
        """The network as it starts: the seed decides, the two networks of a seed share their backbone's start."""
        torch.manual_seed(self.seed)
        model = create_model(self.model, num_classes=10)
        if self.attention != "bare":
            sf.attach_(model, self.attention, form="dynamic")
        return model


class Run:
    """One network in training: its step, what was measured, and where it is written."""

    def __init__(self, plan: Plan, data: Cifar, out: Path, *, graph: bool, half: bool = False) -> None:
        device = data.train.images.device
        self.plan, self.data, self.out = plan, data, out / plan.name
        self.model = plan.build().to(device)
        if device.type == "cpu":
            self.model.to(memory_format=torch.channels_last)  # a sixth faster there
        self.epochs: list[dict[str, Any]] = []
        self.stripes = StripeRecord(self.model) if plan.attention != "bare" else None
        optimizer = torch.optim.SGD(
            self.model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=device.type == "cuda" or None
        )
        shape = (min(BATCH, len(data.train)), *data.train.images.shape[1:])
        self.step = Step(self.model, optimizer, shape, prepare=Normalise(device), device=device, graph=graph, half=half)
        self._pool = (data.train.images, data.train.labels)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only: a part of one would need a graph of its own."""
        return len(self.data.train) // self.step.batch

    def shuffle(self, epoch: int) -> None:
        """Draw the order and the augmentation of an epoch; the seed and the epoch decide."""
        generator = torch.Generator().manual_seed(self.plan.seed * 100_003 + epoch)
        order = torch.randperm(len(self.data.train), generator=generator)
        part = self.data.train.part(order)
        self._pool = (augment(part.images, generator), part.labels)

    def advance(self, index: int, rate: float) -> None:
        """One step on batch ``index`` of the epoch."""
        here = slice(index * self.step.batch, (index + 1) * self.step.batch)
        self.step(self._pool[0][here], self._pool[1][here], rate)

    def measure(self, epoch: int, seconds: float, rate: float) -> None:
        """Accuracies and stripes after an epoch (0: before the first)."""
        self.model.eval()
        row = {"epoch": epoch, "seconds": seconds, "rate": rate, "train_loss": self.step.take_loss()}
        for part in ("validation", "test"):
            row[part] = accuracy(self.model, getattr(self.data, part).batches(2500))
        if self.stripes is not None:
            observed = self.data.test.part(observed_images(len(self.data.test)))
            row["stripes"] = self.stripes.add(
                epoch, Normalise(observed.images.device)(observed.images), observed.labels
            )
        self.epochs.append(row)
        self.model.train()

    def write(self, environment: dict[str, Any], total: int) -> None:
        """Weights, moments and measurements so far; complete after every call."""
        self.out.mkdir(parents=True, exist_ok=True)
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in self.model.state_dict().items()}
        save_file(
            state,
            self.out / "weights.safetensors",
            {"kind": "training", **{k: str(v) for k, v in asdict(self.plan).items()}},
        )
        if self.stripes is not None:
            self.stripes.save(self.out / "stripes.safetensors")
        recipe = {"batch": BATCH, "rate": RATE, "momentum": MOMENTUM, "weight_decay": DECAY, "planned_epochs": total}
        metrics = {**asdict(self.plan), "recipe": recipe, "environment": environment, "epochs": self.epochs}
        (self.out / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")


def observed_images(count: int) -> Tensor:
    """Which test images are observed at every epoch: the same in every run."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(1))[:OBSERVED]


@torch.no_grad()
def accuracy(model: nn.Module, batches: Any) -> float:
    """Top-1 accuracy in percent of a model in evaluation mode."""
    hits = [(model(images).argmax(1) == labels) for images, labels in batches]
    return 100 * torch.cat(hits).double().mean().item()


def train(runs: Sequence[Run], epochs: int, deadline: float, environment: dict[str, Any]) -> None:
    """Train runs abreast; where time grows short, the cosine ends earlier, so that every run comes to its end."""
    synchronise()
    start = time.perf_counter()
    for run in runs:
        run.measure(0, 0.0, RATE)
    overhead = time.perf_counter() - start
    total, done = epochs, 0
    while done < total:
        start = time.perf_counter()
        seconds = _epoch(runs, done, total)
        done += 1
        took = max(time.perf_counter() - start, 1e-3)
        # One more measure() and the writing of files are kept in hand.
        left = deadline - time.perf_counter() - overhead - 2
        total = max(done, min(total, done + int(min(left / took, epochs))))
        last = runs[0].epochs[-1]
        print(f"epoch {done}/{total}: {took:.1f} s ({seconds:.1f} training), {runs[0].plan.name} "
              f"loss {last['train_loss']:.3f} validation {last['validation']:.2f}", flush=True)  # fmt: skip
        if done % 5 == 0 or done == total:
            for run in runs:
                run.write(environment, total)


def _epoch(runs: Sequence[Run], epoch: int, total: int) -> float:
    start = time.perf_counter()
    steps = runs[0].steps_per_epoch
    for run in runs:
        run.shuffle(epoch)
    synchronise()
    rate = RATE
    for index in range(steps):
        progress = (epoch + index / steps) / total
        rate = RATE * 0.5 * (1 + math.cos(progress * math.pi))
        for run in runs:
            run.advance(index, rate)
    synchronise()
    seconds = time.perf_counter() - start
    for run in runs:
        run.measure(epoch + 1, seconds, rate)
    return seconds


def synchronise() -> None:
    """Wait for every stream."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def describe_device(device: torch.device) -> str:
    """The accelerator's name, or the processor's."""
    return str(describe_environment(device)["device"])


def _precision(on_gpu: bool, half: bool) -> str:
    if half:
        return "trained under autocast to bfloat16"
    return "float32, convolutions in TF32" if on_gpu else "float32"


def pack(out: Path, plans: Sequence[Plan]) -> None:
    """One tar file for each model and seed."""
    for model, seed in dict.fromkeys((plan.model, plan.seed) for plan in plans):
        folders = [out / plan.name for plan in plans if (plan.model, plan.seed) == (model, seed)]
        with tarfile.open(out / f"{model}-seed{seed}.tar", "w") as archive:
            for folder in filter(Path.exists, folders):
                archive.add(folder, arcname=folder.name)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder or tar file: train/CLASS/*, test/CLASS/*")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--models", default="resnet20,resnet56")
    parser.add_argument("--attentions", default="se,bare")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument(
        "--abreast", type=int, help="runs trained at the same time (default: all on a GPU, 1 elsewhere)"
    )
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), help="from the start of the script")
    parser.add_argument("--limit", type=int, help="use so many images only: does it run?")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bfloat16", action="store_true", help="train under autocast to bfloat16")
    parser.add_argument("--no-graph", action="store_true", help="launch every kernel from Python")
    parser.add_argument("--pack", action="store_true", help="also write one tar file for each model and seed")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    begin = time.perf_counter()
    options = parse(arguments)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    torch.backends.cudnn.deterministic = True
    environment = {
        "device": describe_device(device),
        "torch": torch.__version__,
        "stripefold": sf.__version__,
        "precision": _precision(on_gpu, options.bfloat16),
    }
    data = load_cifar(options.data, limit=options.limit).to(device)
    print(
        f"data after {time.perf_counter() - begin:.0f} s: {len(data.train)} / {len(data.validation)} / {len(data.test)}"
    )
    names = [options.models.split(","), [int(seed) for seed in options.seeds.split(",")], options.attentions.split(",")]
    plans = [Plan(model, kind, seed) for model in names[0] for seed in names[1] for kind in names[2]]
    abreast = options.abreast or (len(plans) if on_gpu else 1)
    for first in range(0, len(plans), abreast):
        group = plans[first : first + abreast]
        left = options.budget_seconds - (time.perf_counter() - begin)
        deadline = time.perf_counter() + left * len(group) / (len(plans) - first)
        graph = on_gpu and not options.no_graph
        runs = [Run(plan, data, options.out, graph=graph, half=options.bfloat16) for plan in group]
        print(f"{len(group)} runs stand after {time.perf_counter() - begin:.0f} s", flush=True)
        train(runs, options.epochs, deadline, environment)
    if options.pack:
        pack(options.out, plans)
    print(f"finished after {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
