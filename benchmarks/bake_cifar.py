"""What does it cost to bake the attention of trained SE-ResNets? Every figure that `docs/guides/baking.md` shows.

    python -m benchmarks.bake_cifar --data FOLDER_OR_TAR --runs runs/cifar --out runs/baked --jobs 6

takes the networks that `benchmarks.stripes_cifar` trained and measures, for each: every gate baked alone; accuracy
against the number of baked gates, the cheapest first and in both orders of depth; all gates baked, with each repair
and its control. Decisions use the held-out images, figures are those of the test images. `benchmarks.bake_figures`
draws them.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import stripefold as sf
from benchmarks.cifar_data import Cifar, Labelled, Normalise, augment, load_cifar
from benchmarks.stripes_cifar import BATCH, DECAY, MOMENTUM, Plan, accuracy, describe_device
from benchmarks.train_graph import Step
from stripefold.baking.batches import Batches
from stripefold.baking.constants import constants_of
from stripefold.baking.finetune import FineTune, finetune
from stripefold.baking.judge import energies
from stripefold.baking.override_gates import override_gates
from stripefold.baking.recalibrate import Statistics, norms_behind, recalibrate_
from stripefold.baking.sensitivity import cheapest_first, prior
from stripefold.stripe.discover import Discovery, discover
from stripefold.stripe.observe import observe

CALIBRATION = 5120
TUNE_RATE = 0.01
"""the rate at which all weights train for one more epoch, falling to 0 along a cosine"""
CONSTANT_RATE = 0.01
REPAIRED = 9
"""points of the curve, beside its start, at which the repairs are made; `--points` takes fewer"""


class Augmented:
    """Training batches in a new order with new crops whenever they are read; seeded."""

    def __init__(self, part: Labelled, seed: int, batch: int = BATCH) -> None:
        self._part, self._seed, self._batch, self._reads = part, seed, batch, 0
        self._normalise = Normalise(part.images.device)

    def epoch(self) -> Labelled:
        """One epoch's images, bytes, and labels."""
        generator = torch.Generator().manual_seed(self._seed * 7919 + self._reads)
        self._reads += 1
        part = self._part.part(torch.randperm(len(self._part), generator=generator))
        return Labelled(augment(part.images, generator), part.labels)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        part = self.epoch()
        for images, labels in zip(part.images.split(self._batch), part.labels.split(self._batch), strict=True):
            yield self._normalise(images), labels


class Trial:
    """One trained network and the ways to measure it.

    Args:
        model: in evaluation mode, on the data's device.
        data: the images.
        seed: of the run.
    """

    def __init__(self, model: nn.Module, data: Cifar, seed: int) -> None:
        self.model, self.data, self.seed = model, data, seed
        self.device = device = data.test.images.device
        chosen = data.train.part(
            torch.randperm(len(data.train), generator=torch.Generator().manual_seed(5))[:CALIBRATION]
        )
        # Gates are observed on images as they come. A network trained on crops wants BatchNorm statistics of crops.
        crops = augment(chosen.images, torch.Generator().manual_seed(6))
        normalise = Normalise(device)
        self.crops = [(normalise(x), y) for x, y in zip(crops.split(512), chosen.labels.split(512), strict=True)]
        self.whole = [
            (normalise(x), y) for x, y in zip(chosen.images.split(512), chosen.labels.split(512), strict=True)
        ]
        size = 2500 if device.type == "cuda" else 100
        self.test = list(data.test.batches(size))
        self.validation = list(data.validation.batches(size))
        self.discovery: Discovery = discover(model, self.whole[0][0][:2])
        self.names = [gate.name for gate in self.discovery.gates]

    def accuracy(self, constants: Mapping[str, Tensor], part: str = "test") -> float:
        """Of the network with these gates constant, in percent."""
        holding = override_gates(self.model, self.discovery.gates, constants) if constants else nullcontext()
        with holding:
            return accuracy(self.model, getattr(self, part))

    def curve(self, order: Sequence[str], constants: Mapping[str, Tensor]) -> list[float]:
        """Test accuracy with the first 0, 1, 2 ... gates of an order constant."""
        return [self.accuracy({name: constants[name] for name in order[:count]}) for count in range(len(order) + 1)]


def measure(plan: Plan, folder: Path, data: Cifar, points: int = REPAIRED) -> Iterator[dict[str, Any]]:
    """What is known about one run: first each gate and the curves, then the repairs as well, which take longer."""
    device = data.test.images.device
    trial = Trial(_load(plan, folder, device), data, plan.seed)
    seen = {kind: observe(trial.model, part) for kind, part in (("crops", trial.crops), ("whole", trial.whole))}
    means = {kind: {layer.name: layer.mean for layer in report.layers} for kind, report in seen.items()}
    constants = means["whole"]
    means["descriptor"] = constants_of(trial.model, trial.discovery, seen["whole"].layers, "descriptor")[0]
    sites = _sites(trial, seen["whole"], constants)
    alone = {site["name"]: site["alone_validation"] for site in sites}
    order = cheapest_first(trial.names, alone, {site["name"]: site["prior"] for site in sites})
    found = {
        "run": plan.name,
        "model": plan.model,
        "seed": plan.seed,
        "trained": _training_of(folder / plan.name),
        "device": describe_device(device),
        "torch": torch.__version__,
        "stripefold": sf.__version__,
        "images": {"calibration": CALIBRATION, "validation": len(data.validation), "test": len(data.test)},
        "before": {part: trial.accuracy({}, part) for part in ("validation", "test")},
        "sites": sites,
        "cheapest_first": order,
        "curves": {
            "cheapest first": trial.curve(order, constants),
            "first to last": trial.curve(trial.names, constants),
            "last to first": trial.curve(trial.names[::-1], constants),
        },
        "all": {},
        "repaired": {},
    }
    yield found
    for name, value in _all_baked(trial, means, plan, folder):
        found["all"][name] = value
        yield found
    for name, values in repaired(trial, order, constants, points):
        found["repaired"][name] = values
        yield found


def _training_of(folder: Path) -> dict[str, Any]:
    """How the network was trained, for the page: epochs, device, precision."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {"epochs": metrics["epochs"][-1]["epoch"], **metrics["environment"]}


def repaired(
    trial: Trial, order: Sequence[str], constants: Mapping[str, Tensor], points: int = REPAIRED
) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """The curve of an order again, as (gates baked, test accuracy), with each repair made at every point of it."""
    counts = sorted({round(len(order) * step / points) for step in range(points + 1)})
    held = {count: {name: constants[name] for name in order[:count]} for count in counts}
    yield (
        "BatchNorm re-estimated",
        [(count, _recalibrated(trial, values, trial.crops)) for count, values in held.items()],
    )
    yield (
        "constants trained for one epoch",
        [(count, trial.accuracy(_tuned_constants(trial, values) if values else {})) for count, values in held.items()],
    )


def _load(plan: Plan, folder: Path, device: torch.device) -> nn.Module:
    model = plan.build()
    model.load_state_dict(load_file(folder / plan.name / "weights.safetensors"))
    return model.to(device, memory_format=torch.channels_last).eval()


def _sites(trial: Trial, report: sf.StripeReport, constants: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    energy = energies(trial.model, trial.discovery.gates, trial.whole[0][0])
    return [
        {
            "name": layer.name,
            "channels": layer.channels,
            "stripe_index": layer.stripe_index,
            "within_over_mean": layer.within_over_mean,
            "prior": prior(layer.mean, layer.within_variance, energy.get(layer.name)),
            "alone_validation": trial.accuracy({layer.name: constants[layer.name]}, "validation"),
            "alone_test": trial.accuracy({layer.name: constants[layer.name]}),
        }
        for layer in report.layers
    ]


def _all_baked(
    trial: Trial, means: Mapping[str, dict[str, Tensor]], plan: Plan, folder: Path
) -> Iterator[tuple[str, float]]:
    """Test accuracies: all gates constant, the repairs, and what each has to be compared with; the longest last."""
    bare = _load(Plan(plan.model, "bare", plan.seed), folder, trial.device)
    constants = means["whole"]
    yield "dynamic", trial.accuracy({})
    yield "constants", trial.accuracy(constants)
    yield "constants of cropped images", trial.accuracy(means["crops"])
    yield "constants of the mean descriptor", trial.accuracy(means["descriptor"])
    yield "gates removed (v = 1)", accuracy(sf.detach(trial.model), trial.test)
    yield "bare backbone, trained as long", accuracy(bare, trial.test)
    yield "dynamic, BatchNorm re-estimated", _recalibrated(trial, {}, trial.crops)
    yield "dynamic, BatchNorm re-estimated on uncropped images", _recalibrated(trial, {}, trial.whole)
    yield "constants, BatchNorm re-estimated", _recalibrated(trial, constants, trial.crops)
    yield "constants, BatchNorm re-estimated on uncropped images", _recalibrated(trial, constants, trial.whole)
    plain, _ = sf.bake(trial.model, trial.whole, recalibrate=False)
    yield "baked and folded", accuracy(plain.eval(), trial.test)
    yield "constants trained for one epoch", trial.accuracy(_tuned_constants(trial, constants))
    for name, model in (("baked", plain), ("dynamic", trial.model), ("bare backbone", bare)):
        yield f"{name}, all weights trained for one more epoch", _trained_on(model, trial)


def _recalibrated(trial: Trial, constants: Mapping[str, Tensor], images: list[tuple[Tensor, Tensor]]) -> float:
    products = [gate.product for gate in trial.discovery.gates]
    norms = norms_behind(trial.model, trial.discovery.trace.graph, products)
    before = Statistics.of(norms.values())
    with override_gates(trial.model, trial.discovery.gates, constants):
        recalibrate_(trial.model, norms, Batches(images, "calibration", trial.model))
    value = trial.accuracy(constants)
    before.restore_()
    return value


def _tuned_constants(trial: Trial, constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    batches = Batches(Augmented(trial.data.train, trial.seed + 11), "training images", trial.model)
    steps = math.ceil(len(trial.data.train) / BATCH)
    return finetune(
        trial.model,
        constants,
        lambda values: override_gates(trial.model, trial.discovery.gates, values),
        FineTune(steps=steps, lr=CONSTANT_RATE),
        batches=batches,
    )


def _trained_on(model: nn.Module, trial: Trial) -> float:
    """Test accuracy of a copy after one more epoch of all weights; its steps are captured on a GPU."""
    model = copy.deepcopy(model).train()
    device = trial.data.train.images.device
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.SGD(
        model.parameters(), lr=TUNE_RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=on_gpu or None
    )
    part = Augmented(trial.data.train, trial.seed + 13).epoch()
    shape = (min(BATCH, len(part)), *part.images.shape[1:])
    step = Step(model, optimizer, shape, prepare=Normalise(device), device=device, graph=on_gpu)
    steps = len(part) // step.batch
    for index in range(steps):
        here = slice(index * step.batch, (index + 1) * step.batch)
        step(part.images[here], part.labels[here], TUNE_RATE * 0.5 * (1 + math.cos(math.pi * index / steps)))
    if on_gpu:
        torch.cuda.synchronize()
    return accuracy(model.eval(), trial.test)


def run(job: tuple[argparse.Namespace, Plan]) -> None:
    """Measure one run and write its file; in a process of its own."""
    options, plan = job
    start = time.perf_counter()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.deterministic = True
    data = load_cifar(options.data, limit=options.limit).to(torch.device(options.device))
    if options.judged is not None:
        first = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(7))[: options.judged]
        half = data.validation.part(torch.arange(min(options.judged // 2, len(data.validation))))
        data = replace(data, test=data.test.part(first), validation=half)
    options.out.mkdir(parents=True, exist_ok=True)
    for result in measure(plan, options.runs, data, options.points):
        (options.out / f"{plan.name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        done = next(reversed(result["all"].items()), "gates and curves")
        print(f"{plan.name}: {time.perf_counter() - start:.0f} s, {done}", flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder or tar file: train/CLASS/*, test/CLASS/*")
    parser.add_argument("--runs", type=Path, required=True, help="folder that stripes_cifar wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--models", default="resnet20,resnet56")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="runs measured at the same time")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--limit", type=int, help="use so many images only: does it run?")
    parser.add_argument(
        "--judged", type=int, help="test images in use, the same random choice everywhere; default: all"
    )
    parser.add_argument("--points", type=int, default=REPAIRED, help="of the curve at which the repairs are made")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    plans = [Plan(model, "se", int(seed)) for model in options.models.split(",") for seed in options.seeds.split(",")]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        pool.map(run, [(options, plan) for plan in plans], chunksize=1)


if __name__ == "__main__":
    main()
