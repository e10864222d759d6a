"""The plan: which runs there are, in which order, and what is compared with what."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PLAN = Path(__file__).parent / "plan.yaml"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Runs that answer one question.

    Attributes:
        name: Name of its folder.
        title: What is asked.
        options: Of every run: the recipe, and what the study changes in it.
        seeds: Of every configuration.
        configurations: Label -> what it changes in the options.
        primary: Pairs of labels whose difference is tested.
        secondary: Pairs whose difference is described.
        borrows: Another study whose runs of the same seeds are compared with, too.
        judged: Which figure of a run is judged: ``trained``, or ``noise_on``.
        needs_gpu: Whether it is only run where there is a GPU.
    """

    name: str
    title: str
    options: Mapping[str, Any]
    seeds: Sequence[int]
    configurations: Mapping[str, Mapping[str, Any]]
    primary: Sequence[tuple[str, str]]
    secondary: Sequence[tuple[str, str]]
    borrows: str | None
    judged: str
    needs_gpu: bool


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run.

    Attributes:
        study: Name of its study.
        configuration: Label.
        seed: Decides everything that is drawn.
        options: All of its options.
    """

    study: str
    configuration: str
    seed: int
    options: Mapping[str, Any]

    @property
    def epochs(self) -> int:
        """How long it trains."""
        return int(self.options["epochs"])

    @property
    def name(self) -> str:
        """Path of its files below a folder, without a suffix."""
        return f"{self.study}/{slug(self.configuration)}-seed{self.seed}"


def slug(label: str) -> str:
    """A label as a file's name.

    >>> slug("ASR(SE)+SE"), slug("+SE"), slug("psi 0.5")
    ('asr-se+se', '+se', 'psi-0.5')
    """
    return re.sub(r"[^\w.+]+", "-", label.lower()).strip("-").replace("-+", "+")


def load_plan(path: Path = PLAN) -> dict[str, Study]:
    """Study by study, in the order in which they are run.

    Args:
        path: The file.
    """
    plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = plan["configurations"]
    studies = {}
    for name, entry in plan["studies"].items():
        studies[name] = Study(
            name=name,
            title=entry["title"],
            options={**plan["recipe"], **entry.get("recipe", {})},
            seeds=tuple(entry["seeds"]),
            configurations={label: known[label] for label in entry["configurations"]},
            primary=[(first, second) for first, second in entry.get("primary", [])],
            secondary=[(first, second) for first, second in entry.get("secondary", [])],
            borrows=entry.get("borrows"),
            judged=entry.get("judged", "trained"),
            needs_gpu=entry.get("needs") == "gpu",
        )
    return studies


def list_runs(studies: Mapping[str, Study], *, gpu: bool) -> Iterator[RunSpec]:
    """Every run, in the plan's order.

    Args:
        studies: What ``load_plan`` gave.
        gpu: Whether there is a GPU.
    """
    for study in studies.values():
        if study.needs_gpu and not gpu:
            continue
        for seed in study.seeds:
            for label, changes in study.configurations.items():
                yield RunSpec(study=study.name, configuration=label, seed=seed, options={**study.options, **changes})
