"""The gates of a network over its training: moments on a fixed set of images, epoch by epoch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stripefold.asr.gate import DynamicGate

FEW = 16
"""One channel in so many counts as few"""
KEPT = 48
"""images whose gate values are kept at every epoch, for pictures"""


class StripeRecord:
    """What every dynamic gate of a model gives on the same images at each epoch.

    Args:
        model: with dynamic attention attached.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._tensors: dict[str, Tensor] = {}
        self._previous: dict[str, Tensor] = {}

    def add(self, epoch: int, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
        """Observe the model in evaluation mode.

        Args:
            epoch: goes into the keys.
            images: (N, 3, H, W), normalised.
            labels: (N,).

        Returns:
            One row per site, in the order of the network.
        """
        rows = []
        for site, v in self._gates(images).items():
            mean = v.mean(0)
            m2 = (v - mean).square().sum(0)
            kept = {"mean": mean, "m2": m2, "sample": v[:KEPT].half()}
            self._tensors |= {f"{epoch:03d}/{site}/{name}": value.cpu() for name, value in kept.items()}
            rows.append(_row(site, v, labels, self._previous.get(site)))
            self._previous[site] = v
        return rows

    @property
    def previous(self) -> dict[str, Tensor]:
        """Site -> the scales of the last look, (N, C); set it to go on after a stop."""
        return self._previous

    @previous.setter
    def previous(self, values: dict[str, Tensor]) -> None:
        self._previous = dict(values)

    def save(self, path: Path) -> None:
        """Write ``EPOCH/SITE/mean`` and ``/m2`` (C,) in float64, ``/sample`` (48, C) in float16."""
        save_file(self._tensors, path)

    @torch.no_grad()
    def _gates(self, images: Tensor) -> dict[str, Tensor]:
        """Site -> v, (N, C) in float64."""
        values: dict[str, Tensor] = {}
        states: dict[Any, Any] = {}
        gates = [(name, gate) for name, gate in self._model.named_modules() if isinstance(gate, DynamicGate)]
        handles = [gate.register_forward_pre_hook(partial(_keep, values, states, name)) for name, gate in gates]
        try:
            self._model(images)
        finally:
            for handle in handles:
                handle.remove()
        return {name.partition(".gates.")[0]: values[name].double() for name, _ in gates}


def _keep(
    values: dict[str, Tensor], states: dict[Any, Any], name: str, gate: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    attention, chain = cast(Any, gate.attention), gate.chain
    if chain is None:
        values[name] = attention.excite(attention.squeeze(inputs[0]))
    else:  # dia: each site goes on from the one before
        values[name], states[chain] = attention.step(attention.squeeze(inputs[0]), states.get(chain))


def share_of_few(within: Tensor) -> float:
    """Which part of the variance over the images lies in the one channel in ``FEW`` (at least one) that moves most.

    Args:
        within: standard deviation of each channel over the images, (C,).
    """
    variance = within.square().sort(descending=True).values
    total = variance.sum()
    return (variance[: max(1, len(variance) // FEW)].sum() / total).item() if total > 0 else 0.0


def _row(site: str, v: Tensor, labels: Tensor, previous: Tensor | None) -> dict[str, Any]:
    mean, within = v.mean(0), v.std(0, correction=0)
    between = mean.var(correction=0)
    total = v.var(correction=0)
    class_means = torch.stack([v[labels == label].mean(0) for label in labels.unique()])
    counts = labels.unique(return_counts=True)[1].double()
    by_class = (counts[:, None] * (class_means - mean).square()).sum(0) / len(v)
    return {
        "site": site,
        "channels": v.shape[1],
        "stripe_index": (between / total).item() if total > 0 else 1.0,
        "within_std": within.mean().item(),
        "within_std_max": within.max().item(),
        "within_over_mean": (within / mean.abs()).mean().item(),
        "between_std": between.sqrt().item(),
        "mean": mean.mean().item(),
        "share_of_class": (by_class.sum() / within.square().sum()).item() if total > between else 0.0,
        "share_of_few": share_of_few(within),
        "first_difference": None if previous is None else (v - previous).abs().mean().item(),
    }
