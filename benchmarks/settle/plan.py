"""The plan of `benchmarks.settle`: settings, bases and ways, as `plan.yaml` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.accuracy.plan import RunSpec

PLAN = Path(__file__).parent / "plan.yaml"
RESULTS = Path(__file__).parent / "results"
COMMON = {"constants_rate": 1.0}
"""Unless a way says another rate, constants train at the common one."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One set of networks that is trained and settled.

    Attributes:
        name: Of its folder.
        data: Name of the folder of images.
        images: How many training images are used.
        size: Of an image, 32 or 16.
        recipe: Options of the bases' training.
        steps: Of settling.
        rate: Of settling.
        seeds: One base of each kind for each.
        ways: Name -> what it is.
    """

    name: str
    data: str
    images: int
    size: int
    recipe: Mapping[str, Any]
    steps: int
    rate: float
    seeds: tuple[int, ...]
    ways: Mapping[str, Mapping[str, Any]]

    def base(self, kind: str, seed: int) -> RunSpec:
        """The training of a base: "se" or "backbone"."""
        own = {"form": "none"} if kind == "backbone" else {"attention": "se", "form": "dynamic"}
        return RunSpec(study=self.name, configuration=kind, seed=seed, options={**self.recipe, **own})


def load_plan(path: Path = PLAN) -> dict[str, Setting]:
    """Setting by setting, in the order in which they are run.

    Args:
        path: The file.
    """
    plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        name: Setting(
            name=name,
            data=entry["data"],
            images=entry["images"],
            size=entry.get("size", 32),
            recipe={**plan["recipe"], **entry["base"]},
            steps=entry["settle"]["steps"],
            rate=entry["settle"]["rate"],
            seeds=tuple(entry["seeds"]),
            ways=plan["ways"],
        )
        for name, entry in plan["settings"].items()
    }
