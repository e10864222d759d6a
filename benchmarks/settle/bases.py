"""The networks that are settled: trained once, kept with their weights; a run goes on from its last epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import nn

from benchmarks.accuracy import networks
from benchmarks.accuracy.plan import RunSpec
from benchmarks.accuracy.run import Pools, Run, epoch_of
from benchmarks.cifar_data import Cifar, Labelled, load_cifar
from benchmarks.settle.plan import Setting
from stripefold.atomic import atomic_path


def load_data(folder: Path, setting: Setting, work: Path) -> Cifar:
    """The setting's part of the training images, and all test images; decoded once.

    Args:
        folder: Holds the folders of images.
        setting: Says which.
        work: Where the decoded images are kept.
    """
    path = work / f"{setting.data}-{setting.images}-{setting.size}.pt"
    if not path.exists():
        data = load_cifar(folder / setting.data, validation=0)
        chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[: setting.images]
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            train, test = (_small(part, setting.size) for part in (data.train.part(chosen), data.test))
            torch.save(replace(data, train=train, validation=train.part(chosen[:0]), test=test), temporary)
    return torch.load(path, weights_only=False)  # type: ignore[no-any-return]  # our own file


def _small(part: Labelled, size: int) -> Labelled:
    """Images averaged down to a size."""
    factor = part.images.shape[-1] // size
    pieces = [F.avg_pool2d(images.float(), factor).round().byte() for images in part.images.split(5000)]
    return Labelled(torch.cat(pieces), part.labels)


def trained_base(setting: Setting, kind: str, seed: int, data: Cifar, work: Path) -> nn.Module:
    """A trained network, from its file if it is there.

    Args:
        setting: Of the plan.
        kind: "se" or "backbone".
        seed: Decides everything that is drawn.
        data: What it learns from.
        work: Where weights and states lie.

    Returns:
        In evaluation mode, channels last.
    """
    spec = setting.base(kind, seed)
    path = work / f"{spec.name}.weights.pt"
    images = networks.image_spec(data.classes, setting.size)
    model = networks.to_device(networks.build(spec.options, seed, images), torch.device("cpu"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # another process may be training it: wait for that
        if not path.exists():
            _train(spec, data, work / f"{spec.name}.pt", path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def _train(spec: RunSpec, data: Cifar, state: Path, path: Path) -> None:
    """Train a base to its end, and write its weights."""
    run = Run(spec, data, state, graph=False)
    pools = Pools(data)
    run.begin({})
    while run.epoch < spec.epochs:
        for _ in epoch_of([run], pools):
            pass
        print(f"{spec.name}: epoch {run.epoch}, test {run.history['test_accuracy'][-1]:.2f}", flush=True)
    with atomic_path(path) as temporary:
        torch.save(run.model.state_dict(), temporary)
