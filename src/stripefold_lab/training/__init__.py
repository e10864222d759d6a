"""Training runs: data, recipes, the loop, and what a run leaves behind.

What: ``train(TrainConfig(...))`` trains a classifier, a segmentation network or a detector with attention of the chosen
form and leaves one folder: the resolved configuration, metrics, checkpoints, ``folded.safetensors`` and a summary;
``evaluate`` measures what such a run left; ``verify_detector`` compares two detectors.
Paper: the CIFAR recipe is the one of its reference code; see ``recipes/cifar.yaml``.
Why here: the loop itself is pytorch-lightning's. What this package adds is that a run which was killed and resumed ends
with the same bits as one left alone: every random number is derived from (seed, epoch, step, index), so no random
state has to be saved; files are replaced whole or not at all; loading a checkpoint runs nothing that is in it.

The names are lazy: importing the package loads neither torch nor Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stripefold_lab.training.agreement import verify_detector
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.evaluation import evaluate
    from stripefold_lab.training.recipe import load_config, recipe_names
    from stripefold_lab.training.results import EvalResult, TrainResult
    from stripefold_lab.training.runner import train

_HOMES = {
    "TrainConfig": "config",
    "load_config": "recipe",
    "recipe_names": "recipe",
    "TrainResult": "results",
    "EvalResult": "results",
    "train": "runner",
    "evaluate": "evaluation",
    "verify_detector": "agreement",
}

__all__ = [
    "EvalResult",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "load_config",
    "recipe_names",
    "train",
    "verify_detector",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
