"""What the source text of a network imports."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import random
from collections import OrderedDict, defaultdict, deque, namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

__all__ = [
    "Call", "F", "OrderedDict", "Output", "SimpleNamespace", "Tap", "concurrent", "defaultdict", "deque", "functools",
    "itertools", "nn", "np", "picture", "prepared", "random", "torch",
]  # fmt: skip

Output = namedtuple("Output", ["map", "features"])


class Call:
    """One way to call a network: an image, keyword arguments, and attributes that are set before."""

    def __init__(self, x: Tensor, attributes: dict[str, Any] | None = None, **arguments: Any) -> None:
        self.x, self.attributes, self.arguments = x, attributes or {}, arguments

    def example(self, form: str = "tensor") -> Any:
        """The call as an example input: a tensor, a tuple or a mapping."""
        if self.arguments or form == "mapping":
            return {"x": self.x.clone(), **self.arguments}
        return (self.x.clone(),) if form == "tuple" else self.x.clone()

    def run(self, net: nn.Module) -> Any:
        """The network's output; draws of random numbers begin at the same place in every run."""
        for name, value in self.attributes.items():
            setattr(net, name, value)
        random.seed(5)
        np.random.seed(5)
        torch.default_generator.manual_seed(5)  # `torch.manual_seed` seeds accelerators as well, which takes longer
        with torch.no_grad():
            return net(self.x.clone(), **self.arguments)


class Tap:
    """Marks the factor of a product in a network's source. Records it, or holds it constant, when a check asks so."""

    def __init__(self) -> None:
        self.records: dict[str, list[Tensor]] | None = None
        self.held: dict[str, Tensor] = {}

    def __call__(self, name: str, v: Tensor) -> Tensor:
        if self.records is not None:
            self.records.setdefault(name, []).append(v.detach().clone())
        if name in self.held:
            return self.held[name].reshape(1, *v.shape[1:]).expand_as(v).to(v.dtype).clone()
        return v


def picture(n: int, size: int, dtype: torch.dtype) -> Tensor:
    """Images (n, 3, size, size); bytes, or normal numbers."""
    generator = torch.Generator().manual_seed(100 * n + size)
    if dtype == torch.uint8:
        return torch.randint(0, 256, (n, 3, size, size), dtype=dtype, generator=generator)
    return torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def prepared(net: nn.Module, dtype: torch.dtype, seed: int) -> nn.Module:
    """Every number random, scales of both signs, in the wanted dtype and in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    # `net.to(dtype)` would make complex parameters real.
    net = net._apply(lambda t: t.to(dtype) if t.is_floating_point() else t).eval()
    with torch.no_grad():
        for module in net.modules():
            for name, p in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if isinstance(p, nn.parameter.UninitializedTensorMixin) or not p.is_floating_point() or p.numel() == 1:
                    continue
                new = _drawn(name, p, generator)
                if new is not None:
                    p.copy_(new)
    return net


def _drawn(name: str, p: Tensor, generator: torch.Generator) -> Tensor | None:
    noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    if name == "running_var":
        return 0.5 + noise.abs()
    if name in ("running_mean", "bias") or "shift" in name:
        return 0.3 * noise
    if "_u" in name or "_v" in name or not isinstance(p, nn.Parameter):
        return None  # the vectors of a spectral norm, and what the network's source has set
    if p.dim() < 2 or p.numel() == max(p.shape):
        return noise.sign() * (0.5 + 0.5 * noise.abs().clamp(max=2))
    return noise * 1.3 / (p[0].numel() ** 0.5)
