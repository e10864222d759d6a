"""Outputs of a network on all its calls, and how far two of them are apart."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.grammar.support import Call

EXACT, SINGLE, COARSE = 1e-10, 2e-3, 0.2


def flat(output: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output.detach().clone()]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in flat(value)]
    if isinstance(output, (list, tuple)):
        return [tensor for value in output for tensor in flat(value)]
    if isinstance(output, SimpleNamespace):
        return flat(vars(output))
    return flat(dataclasses.asdict(output)) if dataclasses.is_dataclass(output) else []


def outputs(net: nn.Module, calls: Sequence[Call]) -> list[list[Tensor]]:
    """Call by call on a copy, so that the network itself keeps its state."""
    net = copy.deepcopy(net)
    return [flat(call.run(net)) for call in calls]


def distance(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest difference over the largest value, the worst of all tensors; infinite where structures differ."""
    if len(found) != len(truth):
        return float("inf")
    return max((_apart(a, b) for a, b in zip(found, truth, strict=True)), default=0.0)


def distances(found: Sequence[Sequence[Tensor]], truth: Sequence[Sequence[Tensor]]) -> list[float]:
    """Call by call."""
    return [distance(a, b) for a, b in zip(found, truth, strict=True)]


def _apart(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if not b.numel() or torch.equal(a, b):
        return 0.0
    if not b.is_floating_point():
        return float((a != b).double().mean())
    a, b = a.double(), b.double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    a, b = torch.nan_to_num(a, 0, 0, 0), torch.nan_to_num(b, 0, 0, 0)
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def noise(net: nn.Module, calls: Sequence[Call]) -> float:
    """What a change of the weights in the last place does to the outputs: the network's own amplification."""
    moved = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in moved.parameters():
            if p.is_floating_point():
                spacing = torch.finfo(p.dtype).eps
                p.mul_(1 + spacing * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))
    return max(distances(outputs(moved, calls), outputs(net, calls)))
