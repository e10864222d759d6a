"""The networks to compare: read from what runs left, checked to belong together, named and put into groups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stripefold.asr.gate import StaticGate
from stripefold.branches.block import BranchBlock
from stripefold.errors import ConfigError
from stripefold_lab.training.config import FREE_ON_RESUME, TrainConfig
from stripefold_lab.training.loading import LoadedRun, fold_quietly, load_run
from stripefold_lab.training.unused_options import canonical

SAME = ("task", "data", "limit_train", "limit_test")
"""Options in which compared runs may not differ: the images, and what they are judged by."""
IGNORED = FREE_ON_RESUME | {"seed", "threads", "accelerator", "observe_every", "observe_images"}
"""Options that do not make a run another experiment."""


@dataclass(frozen=True, kw_only=True)
class MeasuredNetwork:
    """One network to measure.

    Attributes:
        label: What it is; networks that differ in nothing but the seed share it.
        seed: Of its run.
        model: In eval mode, on the CPU.
        source: The file it comes from.
        gated: The same network with its static gates, where this one is folded from it; else None.
    """

    label: str
    seed: int
    model: nn.Module
    source: str
    gated: nn.Module | None = None


def load_networks(sources: Sequence[str | Path], **overrides: Any) -> tuple[list[MeasuredNetwork], LoadedRun]:
    """Read runs; one with static gates gives two networks, attached and folded.

    Args:
        sources: Folders of runs, checkpoints, or safetensors files of runs.
        overrides: Options to change in every run.

    Returns:
        The networks, groups together and seeds rising, and the first run, whose images are everybody's.

    Raises:
        CheckpointError: If a file is missing, damaged, or does not come from a run.
        ConfigError: If there is no source, two are the same experiment with the same seed, or they differ in task,
            data, classes or images.
    """
    if not sources:
        raise ConfigError("no run was named; give the folders of runs, such as runs/bare runs/asr")
    runs = [load_run(source, **overrides) for source in sources]
    for run in runs[1:]:
        _check_same(runs[0], run)
    labels = _labels(runs)
    groups: dict[str, dict[int, LoadedRun]] = {}
    for run, label in zip(runs, labels, strict=True):
        group = groups.setdefault(label, {})
        if run.config.seed in group:
            raise ConfigError(
                f"{group[run.config.seed].path} and {run.path} are the same experiment with the same seed "
                f"{run.config.seed}; give each run once"
            )
        group[run.config.seed] = run
    networks = [network for label, group in groups.items() for network in _networks(label, group)]
    return networks, runs[0]


def _check_same(first: LoadedRun, other: LoadedRun) -> None:
    mine, theirs = _seen(first), _seen(other)
    for what, value in mine.items():
        if theirs[what] != value:
            raise ConfigError(
                f"{first.path} and {other.path} cannot be compared: {what} is {_short(value)} and "
                f"{_short(theirs[what])}; compare runs that saw the same data"
            )


def _seen(run: LoadedRun) -> dict[str, Any]:
    about = {"classes": run.spec.classes, "image_size": run.spec.size, "channels": run.spec.channels}
    return {**{name: getattr(run.config, name) for name in SAME}, **about}


def _short(value: Any) -> str:
    return f"{len(value)} ({', '.join(value[:3])} ...)" if isinstance(value, tuple) else repr(value)


def _networks(label: str, group: dict[int, LoadedRun]) -> list[MeasuredNetwork]:
    """Of one group, seeds rising: first all attached, then all folded ones."""
    ordered = [group[seed] for seed in sorted(group)]
    plain: list[MeasuredNetwork] = []
    folded: list[MeasuredNetwork] = []
    for run in ordered:
        common: dict[str, Any] = {"seed": run.config.seed, "source": str(run.path)}
        model = run.model.eval()
        if not _has_static_gates(model):
            plain.append(MeasuredNetwork(label=label, model=model, **common))
            continue
        plain.append(MeasuredNetwork(label=f"{label}, attached", model=model, **common))
        merged = fold_quietly(model, run.spec.example())
        folded.append(MeasuredNetwork(label=f"{label}, folded", model=merged, gated=model, **common))
    return [*plain, *folded]


def _has_static_gates(model: nn.Module) -> bool:
    return any(isinstance(module, StaticGate) for module in model.modules())


def _labels(runs: Sequence[LoadedRun]) -> list[str]:
    """What each run is; where two experiments would read the same, what they differ in is added."""
    names = [_name(run) for run in runs]
    settings = [_settings(run.config) for run in runs]
    labels = []
    for name, mine in zip(names, settings, strict=True):
        rivals = [theirs for other, theirs in zip(names, settings, strict=True) if other == name]
        differing = [key for key in mine if any(theirs[key] != mine[key] for theirs in rivals)]
        more = ", ".join(f"{key}={_plain(mine[key])}" for key in differing)
        labels.append(f"{name} ({more})" if more else name)
    return labels


def _name(run: LoadedRun) -> str:
    config = run.config
    attention = config.attention.upper()
    forms = {
        "none": "backbone",
        "static": f"ASR({attention})",
        "dynamic": f"+ {attention}",
        "both": f"ASR({attention}) + {attention}",
    }
    name = forms[config.form] + (f", {config.branch} blocks" if config.branch is not None else "")
    # What is left of ASR beside a dynamic attention after folding is attached, too.
    left = any(isinstance(module, (StaticGate, BranchBlock)) for module in run.model.modules())
    kind = "folded" if run.kind == "attached" and config.folds and not left else run.kind
    return name if kind in ("attached", "backbone", "plain") else f"{name}, {kind} file"


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The options that make a run the experiment it is; what does nothing in it does not."""
    return {name: None if name in IGNORED else value for name, value in canonical(config).to_dict().items()}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True).replace('"', "")
