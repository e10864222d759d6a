"""From a run's options to its network, as `stripefold train` would build it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import stripefold as sf
from stripefold_lab.training.build import build_backbone, build_model
from stripefold_lab.training.config import TrainConfig
from stripefold_lab.training.data import ImageSpec


def image_spec(classes: tuple[str, ...], size: int = 32) -> ImageSpec:
    """What the images look like."""
    return ImageSpec(classes=classes, channels=3, size=size)


def configure(options: Mapping[str, Any], seed: int) -> TrainConfig:
    """The options as a configuration of the product; what only this experiment knows is left out."""
    return TrainConfig(**{name: value for name, value in options.items() if name != "start_at"}, seed=seed)


def build(options: Mapping[str, Any], seed: int, spec: ImageSpec) -> nn.Module:
    """The network as it starts, in training mode; a seed gives the same backbone under every configuration.

    Args:
        options: Of the run.
        seed: Of the run.
        spec: What the images look like.
    """
    config = configure(options, seed)
    started = options.get("start_at")
    if started is None:
        return build_model(config, spec)
    like = build_model(config.with_overrides(attention=started), spec)
    model = build_backbone(config, spec)
    where = {site: {"psi": v.detach().clone()} for site, v in sf.scales(like).items()}
    return sf.attach_(model, config.attention, where=where).train()


def fold(model: nn.Module, spec: ImageSpec) -> nn.Module | None:
    """The network without its gates and blocks; None where nothing folds."""
    static = bool(sf.scales(model)) or any(hasattr(module, "branches") for module in model.modules())
    device = next(model.parameters()).device
    return sf.fold(model.eval(), example=spec.example().to(device)) if static else None


def parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in model.parameters())


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """On the device, channels last."""
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
