"""One run of the plan: its network, its steps, what was measured, and a state on disk from which it goes on."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy import networks
from benchmarks.accuracy.noise import ParameterNoise
from benchmarks.accuracy.plan import RunSpec
from benchmarks.cifar_data import Cifar, Labelled, Normalise, augment
from benchmarks.stripes_record import StripeRecord
from benchmarks.train_graph import Step
from stripefold.asr.gate import DynamicGate
from stripefold.atomic import atomic_path, write_text
from stripefold_lab.training.batch_noise import BatchNoise
from stripefold_lab.training.schedule import rate_factor
from stripefold_lab.training.seeding import derive_seed

JUDGED_AT_ONCE = 1000
OBSERVED = 512
CLOCKS = ("seconds", "cpu_seconds")
"""Of an epoch: on the wall, where other work may go on beside it, and of this process."""


class Pools:
    """The training images of an epoch, in order and augmented; runs of one seed share them."""

    def __init__(self, data: Cifar) -> None:
        self._data = data
        self._pools: dict[int, tuple[int, Labelled]] = {}

    def take(self, seed: int, epoch: int) -> Labelled:
        """The images of an epoch; the seed and the epoch decide about order and augmentation."""
        known = self._pools.get(seed)
        if known is None or known[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed(seed, "accuracy epoch", epoch))
            part = self._data.train.part(torch.randperm(len(self._data.train), generator=generator))
            self._pools[seed] = epoch, Labelled(augment(part.images, generator), part.labels)
        return self._pools[seed][1]

    def clear(self) -> None:
        """Forget them."""
        self._pools.clear()


class Run:
    """A network in training.

    Args:
        spec: What is trained.
        data: On the device.
        state: File that the run goes on from, if it is there.
        graph: Whether a step is replayed as a CUDA graph.
    """

    def __init__(self, spec: RunSpec, data: Cifar, state: Path, *, graph: bool) -> None:
        device = data.train.images.device
        self.spec, self.data, self.state = spec, data, state
        self.config = networks.configure(spec.options, spec.seed)
        self.images = networks.image_spec(data.classes, data.train.images.shape[-1])
        self.model = networks.to_device(networks.build(spec.options, spec.seed, self.images), device)
        noise = BatchNoise.read(self.config.batch_noise)
        self.noise = None if noise is None else ParameterNoise(self.model, noise, spec.seed)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=self.config.learning_rate, momentum=self.config.momentum,
            weight_decay=self.config.weight_decay, fused=True if device.type == "cuda" else None,
        )  # fmt: skip
        self.history: dict[str, list[Any]] = {name: [] for name in ("train_loss", "test_accuracy", *CLOCKS)}
        self.sessions: list[dict[str, Any]] = []
        watched = any(isinstance(module, DynamicGate) for module in self.model.modules())
        self.stripes = StripeRecord(self.model) if watched else None
        self.stripe_rows: dict[int, list[dict[str, Any]]] = {}
        shape = (min(self.config.batch_size, len(data.train)), *data.train.images.shape[1:])
        around = contextlib.nullcontext if self.noise is None else self.noise.on
        self.step = Step(
            self.model, self.optimizer, shape, prepare=Normalise(device), device=device, graph=graph,
            half=self.config.precision == "bf16-mixed", around=around,
        )  # fmt: skip
        self._load()

    @property
    def epoch(self) -> int:
        """How many epochs it has behind it."""
        return len(self.history["test_accuracy"])

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only."""
        return len(self.data.train) // self.step.batch

    def begin(self, session: dict[str, Any]) -> None:
        """Note who goes on with it: commit, device, versions."""
        if not self.sessions or {**self.sessions[-1], "epochs": 0} != {**session, "epochs": 0}:
            self.sessions.append({**session, "epochs": 0})
        if self.epoch == 0:
            self._observe()

    def advance(self, pool: Labelled, index: int) -> None:
        """One step on batch ``index`` of the epoch."""
        here = slice(index * self.step.batch, (index + 1) * self.step.batch)
        number = self.epoch * self.steps_per_epoch + index
        if self.noise is not None:
            with self.step.stream():
                self.noise.draw(number)
        rate = self.config.learning_rate * rate_factor(self.config, self.steps_per_epoch, number)
        self.step(pool.images[here], pool.labels[here], rate)

    def end_epoch(self, *clocks: float) -> None:
        """Measure, and keep everything; ``clocks`` as in ``CLOCKS``."""
        half = self.epoch + 1 < self.spec.epochs
        self.history["train_loss"].append(self.step.take_loss())
        self.history["test_accuracy"].append(self._accuracy(self.model, half=half)[0])
        for name, seconds in zip(CLOCKS, clocks, strict=True):
            self.history[name].append(round(seconds, 1))
        self.sessions[-1]["epochs"] += 1
        self._observe()
        self.save()

    def _observe(self) -> None:
        """Look at the dynamic gates on 512 fixed test images."""
        if self.stripes is None:
            return
        count = len(self.data.test)
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(1))[:OBSERVED]
        part = self.data.test.part(chosen)
        images, labels = next(part.batches(len(part)))
        self.model.eval()
        rows = self.stripes.add(self.epoch, images, labels)
        self.model.train()
        self.stripe_rows[self.epoch] = [
            {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}
            for row in rows
        ]

    def save(self) -> None:
        """Write the state; whole or not at all."""
        self.state.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "history": self.history,
            "sessions": self.sessions, "options": json.dumps(self.spec.options, sort_keys=True),
            "stripe_rows": json.dumps(self.stripe_rows),
            "stripe_values": {} if self.stripes is None else self.stripes.previous,
        }  # fmt: skip
        with atomic_path(self.state) as temporary:
            torch.save(content, temporary)

    def _load(self) -> None:
        if not self.state.exists():
            return
        content = torch.load(self.state, map_location="cpu", weights_only=True)
        asked = json.dumps(self.spec.options, sort_keys=True)
        if content["options"] != asked:
            raise SystemExit(f"{self.state} is of a run with other options ({content['options']}); move it away")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.stripes is not None and "stripe_rows" in content:
            self.stripe_rows = {int(epoch): rows for epoch, rows in json.loads(content["stripe_rows"]).items()}
            device = next(self.model.parameters()).device
            self.stripes.previous = {site: values.to(device) for site, values in content["stripe_values"].items()}
        self.history, self.sessions = {**self.history, **content["history"]}, content["sessions"]

    def finish(self, results: Path) -> dict[str, Any]:
        """Fold, judge, write the raw file, and give up the state."""
        final = self.judge()
        record = {
            "study": self.spec.study, "configuration": self.spec.configuration, "seed": self.spec.seed,
            "options": dict(self.spec.options), "parameters": networks.parameters(self.model),
            "steps_per_epoch": self.steps_per_epoch, **self.history, **final,
            **{f"total_{name}": round(sum(self.history[name]), 1) for name in CLOCKS}, "sessions": self.sessions,
        }  # fmt: skip
        path = results / f"{self.spec.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(record, indent=1) + "\n")
        if self.stripe_rows:
            write_text(path.with_suffix(".stripes.json"), json.dumps(self.stripe_rows) + "\n")
        self.state.unlink(missing_ok=True)
        return record

    def judge(self) -> dict[str, Any]:
        """Accuracies in float32 after the last epoch: as trained, folded, and with the noise left on."""
        accuracy, classes = self._accuracy(self.model)
        found: dict[str, Any] = {"trained": accuracy}
        if self.noise is not None and self.config.batch_noise["kind"] == "constant":
            with self.noise.on():
                found["noise_on"] = self._accuracy(self.model)[0]
        folded = networks.fold(self.model, self.images)
        if folded is not None:
            found["folded"], theirs = self._accuracy(folded)
            found["folded_differs"] = int((theirs != classes).sum())
            found["folded_parameters"] = networks.parameters(folded)
        self.model.train()
        return found

    @torch.no_grad()
    def _accuracy(self, model: nn.Module, *, half: bool = False) -> tuple[float, Tensor]:
        """Top-1 accuracy in per cent, and the classes given (N,)."""
        model.eval()
        found = []
        for images, _ in self.data.test.batches(JUDGED_AT_ONCE):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
                found.append(model(images).argmax(1))
        model.train()
        classes = torch.cat(found)
        return round(100 * (classes == self.data.test.labels).double().mean().item(), 4), classes


def epoch_of(runs: list[Run], pools: Pools) -> Iterator[int]:
    """One epoch of runs abreast, all of them at the same one; gives the number of each step that was made."""
    start = time.perf_counter(), time.process_time()
    epoch = runs[0].epoch
    of_seed = {run.spec.seed: pools.take(run.spec.seed, epoch) for run in runs}
    _synchronise()
    for index in range(runs[0].steps_per_epoch):
        for run in runs:
            run.advance(of_seed[run.spec.seed], index)
        yield index
    _synchronise()
    took = time.perf_counter() - start[0], time.process_time() - start[1]
    for run in runs:
        run.end_epoch(*(seconds / len(runs) for seconds in took))


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
