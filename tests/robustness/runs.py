"""Runs without the training: files as a run leaves them, with random weights that can be judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import stripefold as sf
from stripefold_lab.training.build import build_model
from stripefold_lab.training.config import TrainConfig
from stripefold_lab.training.data import load_data
from tests.lifecycle import prepared, scatter_

KIND = {"none": None, "static": "attached", "dynamic": "attached", "both": "attached"}


def configure(form: str = "static", seed: int = 0, **changes: Any) -> TrainConfig:
    values = {"model": "resnet8", "limit_test": 24, "batch_size": 10, "threads": 1, "accelerator": "cpu", **changes}
    return TrainConfig(form=form, seed=seed, **values)


def write_run(folder: Path, form: str = "static", seed: int = 0, **changes: Any) -> Path:
    """A safetensors file of a run; its network is random and fits the images."""
    config = configure(form, seed, **changes)
    data = load_data(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config, data.spec)
        if config.task == "classification":
            prepared(model, torch.stack([data.test[index][0] for index in range(16)]))
        scatter_(model)
    about = {"classes": list(data.spec.classes), "channels": data.spec.channels, "image_size": data.spec.size}
    name = "-".join([form, str(seed), *map(str, changes.values())]).replace("/", "_").replace(":", "_")
    path = folder / f"{name}.safetensors"
    return sf.save_model(model, path, kind=KIND[form], extra={**about, "config": config.to_dict()})
