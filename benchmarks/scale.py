"""What gates cost as data, sites and processes grow: computed from the networks, into `docs/guides/scale.md`.

Nothing here is timed. Counts come from the modules (parameters, weights) and from one call of a site (operators);
bytes on the wire follow from the algorithm, a ring, which NCCL and gloo use for large tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import stripefold as sf
from stripefold.asr.sites import attached_sites
from stripefold.stripe.moments import Moments
from stripefold_lab.models import create_model

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "scale.md"
MARKS = re.compile(r"(<!-- costs: [^>]*-->\n).*?(<!-- end of costs -->)", re.DOTALL)
PROCESSES = 8
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet164": {"num_classes": 100, "image_size": 32},
    "timm/vit_small_patch16_224": {"num_classes": 1000},
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the gates of one network cost.

    Attributes:
        sites: How many there are.
        channels: Of all of them together.
        backbone: Parameters without the gates.
        gates: Parameters of the gates.
        multiply_adds: Of all gates, in a step, whatever the number of images.
        operators: That a site runs more than its layer does, in a forward.
        moments: Bytes that `observe` keeps of every channel, however many images there are.
    """

    sites: int
    channels: int
    backbone: int
    gates: int
    multiply_adds: int
    operators: int
    moments: int

    @property
    def gradient_bytes(self) -> tuple[int, int]:
        """Of the backbone and of the gates, in float32."""
        return 4 * self.backbone, 4 * self.gates


def cost_of(model: nn.Module) -> Cost:
    """Count what an attached network holds.

    Args:
        model: With static gates.
    """
    sites = attached_sites(model)
    gates = [parameter for site in sites.values() for gate in site.gates for parameter in gate.parameters()]
    unique = {id(parameter): parameter for parameter in gates}.values()
    channels = sum(len(v) for v in sf.scales(model).values())
    # A weight is used once for v; then each channel of the layer's weight, and of its bias, is multiplied by v.
    weights = sum(parameter.numel() for parameter in unique if parameter.dim() > 1)
    count = sum(parameter.numel() for parameter in unique)
    return Cost(
        sites=len(sites),
        channels=channels,
        backbone=sum(parameter.numel() for parameter in model.parameters()) - count,
        gates=count,
        multiply_adds=weights + 2 * channels,
        operators=max(operators(site) for site in sites.values()),
        moments=moment_bytes(),
    )


def moment_bytes(channels: int = 64) -> int:
    """Bytes of the streamed moments per channel: those of many images are those of two."""
    found = Moments.of(torch.zeros(2, channels)).merge(Moments.of(torch.zeros(3, channels)))
    return (found.mean.nbytes + found.m2.nbytes) // channels


def operators(site: Any) -> int:
    """Operators, views left out, that make v and scale the layer's parameters: on a GPU about a kernel each."""
    with torch.no_grad(), _Counted() as both:
        _ = site.weight
        _ = site.bias
    with torch.no_grad(), _Counted() as v:
        for gate in site.gates:
            gate()
    return both.count - v.count  # each of the two was asked for v, which a forward computes once


class _Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = [returned for returned in func._schema.returns if isinstance(returned.type, torch.TensorType)]
        self.count += any(returned.alias_info is None or returned.alias_info.is_write for returned in made)
        return func(*args, **(kwargs or {}))


def all_reduced(size: int, processes: int) -> float:
    """Bytes that a process sends for a sum of ``size`` bytes over all: ddp, once per step."""
    return 2 * (processes - 1) / processes * size


def sharded(size: int, processes: int) -> float:
    """Bytes that a process sends for ``size`` bytes of parameters: fsdp gathers twice and scatters the gradients."""
    return 3 * (processes - 1) / processes * size


def attached(name: str) -> nn.Module:
    """A network with ASR(SE) at its residual branches."""
    torch.manual_seed(0)
    return sf.attach_(create_model(name, **NETWORKS[name]), "se")


def render(costs: Iterable[tuple[str, Cost]]) -> str:
    """The table of the page."""
    named = list(costs)
    many = f"sent per process and step, {PROCESSES} processes"
    rows: dict[str, Callable[[Cost], str]] = {
        "sites, channels": lambda cost: f"{cost.sites}, {cost.channels:,}",
        "parameters: backbone": lambda cost: f"{cost.backbone:,}",
        "parameters: gates": lambda cost: f"{cost.gates:,} ({cost.gates / cost.backbone:.1%})",
        "multiply-adds of all gates, per step": lambda cost: f"{cost.multiply_adds:,}",
        "operators per site and forward": lambda cost: f"{cost.operators}",
        "moments while observing": lambda cost: _bytes(cost.moments * cost.channels),
        "gradients: backbone": lambda cost: _bytes(cost.gradient_bytes[0]),
        "gradients: gates": lambda cost: _bytes(cost.gradient_bytes[1]),
        f"ddp, {many}": lambda cost: _bytes(all_reduced(sum(cost.gradient_bytes), PROCESSES)),
        "of which for the gates": lambda cost: _bytes(all_reduced(cost.gradient_bytes[1], PROCESSES)),
        f"fsdp, {many}": lambda cost: _bytes(sharded(sum(cost.gradient_bytes), PROCESSES)),
    }
    lines = [["computed", *(f"{name} + ASR(SE)" for name, _ in named)], ["---"] * (1 + len(named))]
    lines += [[what, *(show(cost) for _, cost in named)] for what, show in rows.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines).replace("| --- | --- | --- |", "|---|---|---|")


def _bytes(size: float) -> str:
    return f"{size / 2**20:.2f} MiB" if size >= 2**18 else f"{size / 2**10:.1f} KiB"


def with_costs(page: str, costs: Iterable[tuple[str, Cost]]) -> str:
    """The page with the table between its marks renewed."""
    return MARKS.sub(lambda found: found[1] + render(costs) + found[2], page)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_costs(text, [(name, cost_of(attached(name))) for name in NETWORKS]), encoding="utf-8")
