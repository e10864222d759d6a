"""``measure_robustness``: the score of every network under every disturbance."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stripefold import __version__
from stripefold.errors import ConfigError, DataError
from stripefold.progress import StepProgress
from stripefold_lab.robustness.agreement import FoldAgreement, Inside
from stripefold_lab.robustness.corruptions import Corruption
from stripefold_lab.robustness.inside import INSIDE, noise_inside, noisy_layers
from stripefold_lab.robustness.kinds import KINDS, choose_kinds, choose_severities
from stripefold_lab.robustness.networks import MeasuredNetwork, load_networks
from stripefold_lab.robustness.report import CLEAN, RobustnessReport, Score
from stripefold_lab.training.data import Data
from stripefold_lab.training.evaluation import evaluate_model
from stripefold_lab.training.tasks import get_task

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig


def measure_robustness(
    sources: Sequence[str | Path],
    *,
    kinds: Iterable[str] | None = None,
    severities: Iterable[int] | None = None,
    images: int | None = None,
    seed: int = 0,
    progress: StepProgress | None = None,
) -> RobustnessReport:
    """Compare what runs left under noise in the image, common corruptions, and noise in their layers.

    Images are disturbed in 0..1, at the network's size, before they are normalised. Every network meets the same
    noise. A run with static gates is measured attached and folded, and the two are compared in float64 under every
    disturbance.

    Args:
        sources: Folders of runs, checkpoints or safetensors files of runs; those that differ in the seed alone are put
            together.
        kinds: Names of ``KINDS`` or of their families; None is every one that suits the task.
        severities: Of 1 to 5; None is all.
        images: How many test images, the same random choice every time; None is what the runs were tested on.
        seed: Of the noise.
        progress: Called with what is measured, how many measurements are done, and of how many.

    Raises:
        CheckpointError: If a file is missing, damaged, or does not come from a run.
        ConfigError: If the runs saw different data or classes, a kind or severity does not exist, or a kind does not
            suit the task or the networks.
        DataError: If there are no test images.
        VerifyError: If a folded network computes something else than the attached one.
    """
    levels = choose_severities(severities)
    asked = None if kinds is None else choose_kinds(kinds)
    networks, first = load_networks(sources, **({} if images is None else {"limit_test": images}))
    chosen = _suitable(asked, first.config)
    _check_layers(networks, [kind for kind in chosen if kind in INSIDE])
    data = first.open_data()
    if data.spec.classes != first.spec.classes:
        raise DataError(
            f"{first.path} was trained on other classes than {first.config.data} has now; give the data it was trained "
            "on"
        )
    first.check_data(data)
    work = _Work(networks, data, first.config, seed=seed, progress=progress)
    conditions = [(CLEAN, 0), *((kind, severity) for kind in chosen for severity in levels)]
    scores = work.measure(conditions)
    return RobustnessReport(
        task=first.config.task,
        measure=get_task(first.config.task).score.name,
        data=first.config.data,
        images=len(data.test),
        noise_seed=seed,
        seeds={label: tuple(n.seed for n in networks if n.label == label) for label in work.labels},
        sources={label: tuple(n.source for n in networks if n.label == label) for label in work.labels},
        scores=scores,
        equivalences=tuple(work.agreement.found),
        versions={
            "stripefold": __version__, "torch": str(torch.__version__), "torchvision": version("torchvision")
        },
    )  # fmt: skip


def _suitable(asked: tuple[str, ...] | None, config: TrainConfig) -> tuple[str, ...]:
    """The kinds to measure: a network whose layers do not see whole images is disturbed from outside only."""
    mixed_rows = get_task(config.task).mixed_rows
    if not mixed_rows:
        return choose_kinds(asked)
    inside = [kind for kind in asked or () if kind in INSIDE]
    if inside:
        raise ConfigError(
            f"{inside[0]!r} needs to know which image each row of a layer belongs to, and {mixed_rows}; choose kinds "
            f"of the families noise and corruption for {config.task}"
        )
    return tuple(kind for kind in choose_kinds(asked) if kind not in INSIDE)


def _check_layers(networks: Sequence[MeasuredNetwork], inside: Sequence[str]) -> None:
    """Noise is paired by the layers' names: every network must have the same ones."""
    for kind in inside:
        names = [_layer_names(network, kind) for network in networks]
        for network, found in zip(networks, names, strict=True):
            odd = sorted(found ^ names[0])
            if odd:
                raise ConfigError(
                    f"{networks[0].source} ({networks[0].label}) and {network.source} ({network.label}) do not have "
                    f"the same layers, so {kind!r} cannot be the same noise in both: {odd[0]!r} is in one only; "
                    "compare networks of one architecture, branch blocks folded, or leave out the family inside"
                )


def _layer_names(network: MeasuredNetwork, kind: str) -> set[str]:
    try:
        return set(noisy_layers(network.model, kind))
    except ConfigError as error:
        raise ConfigError(f"{network.source}, {kind}: {error}") from error


class _Work:
    """The measurements of one report."""

    def __init__(
        self,
        networks: Sequence[MeasuredNetwork],
        data: Data,
        config: TrainConfig,
        *,
        seed: int,
        progress: StepProgress | None,
    ) -> None:
        self.networks = networks
        self.labels = tuple(dict.fromkeys(network.label for network in networks))
        self.data = data
        self.config = config
        self.seed = seed
        self.agreement = FoldAgreement(networks, data, get_task(config.task))
        self._tell = progress or (lambda what, done, total: None)

    def measure(self, conditions: Sequence[tuple[str, int]]) -> tuple[Score, ...]:
        """Every network under every condition (kind, severity)."""
        return tuple(self._scores(conditions))

    def _scores(self, conditions: Sequence[tuple[str, int]]) -> Iterator[Score]:
        done, total = 0, len(conditions) * len(self.networks)
        last = dict(conditions)  # kind -> its highest severity, which comes last
        for kind, severity in conditions:
            data = self._disturbed(kind, severity)
            found: dict[str, list[float]] = {label: [] for label in self.labels}
            for network in self.networks:
                self._tell(f"{kind} {severity or ''}".rstrip(), done, total)
                found[network.label].append(self._score(network, data, kind, severity))
                done += 1
            if severity == last[kind]:
                self.agreement.check(kind, data, self._inside(kind, severity))
            strength = KINDS[kind].strength(severity) if severity else 0.0
            for label, scores in found.items():
                yield Score(network=label, kind=kind, severity=severity, strength=strength, scores=tuple(scores))
        self._tell("", total, total)

    def _disturbed(self, kind: str, severity: int) -> Data:
        if kind == CLEAN or kind in INSIDE:
            return self.data
        return replace(self.data, test=self.data.test.changed(Corruption(kind, severity, self.seed)))

    def _inside(self, kind: str, severity: int) -> Inside:
        if kind not in INSIDE:
            return lambda model, *, images: nullcontext()
        return functools.partial(noise_inside, kind=kind, severity=severity, seed=self.seed)

    def _score(self, network: MeasuredNetwork, data: Data, kind: str, severity: int) -> float:
        with self._inside(kind, severity)(network.model, images=len(data.test)):
            return evaluate_model(network.model, data, self.config, kind=kind, source=network.source).score
