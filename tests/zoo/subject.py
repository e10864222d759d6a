"""What the zoo tests: one model of a library, how it is built and what it is fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from stripefold.modules.example import Example, run_example
from stripefold.modules.tensors import tensors_of

BATCH = 2


def all_outputs(model: nn.Module, example: Example) -> dict[str, Tensor]:
    """Path -> floating-point tensor of everything the model returns."""
    return floats(run_example(model, example))


def floats(output: Any) -> dict[str, Tensor]:
    """Path -> floating-point tensor in a nested output."""
    return {path: tensor for path, tensor in tensors_of(output) if tensor.is_floating_point() and tensor.numel()}


def projected(outputs: dict[str, Tensor], generator: Generator) -> Tensor:
    """A random linear functional of all outputs: a loss that no direction of the output escapes."""
    loss = torch.zeros(())
    for tensor in outputs.values():
        if tensor.requires_grad:
            direction = torch.randn(tensor.shape, generator=generator) / tensor.numel() ** 0.5
            loss = loss + (torch.where(tensor.isfinite(), tensor, 0) * direction).sum()
    return loss


def projection_loss(model: nn.Module, example: Example, generator: Generator) -> Tensor:
    """The loss of a model that returns tensors."""
    return projected(all_outputs(model, example), generator)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model, in one size.

    Attributes:
        name: the library's own name.
        build: makes the model; the weights it gets are thrown away.
        inputs: a fresh float32 example for a seed.
        loss: of a training step.
        smooth_outputs: what is compared in float32. A detector's boxes jump when two scores change places, so there the
            heads' own outputs are; in float64 everything returned is always compared.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Example]
    loss: Callable[[nn.Module, Example, Generator], Tensor] = projection_loss
    smooth_outputs: Callable[[nn.Module, Example], dict[str, Tensor]] = all_outputs


def images(seed: int, channels: int, *size: int, batch: int = BATCH) -> Tensor:
    """Random images that differ at large and at small scale, shape (batch, channels, *size)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, *(min(4, side) for side in size), generator=generator)
    smooth = F.interpolate(coarse, size=size, mode="nearest")
    return smooth + 0.7 * torch.randn(batch, channels, *size, generator=generator)


class _SkipRandomFill(TorchFunctionMode):
    """Leaves large tensors as they are where they would be filled with random numbers."""

    _SKIPPED = frozenset({"uniform_", "normal_", "erfinv_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_"})
    _SMALL = 4096

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in self._SKIPPED and args and args[0].numel() > self._SMALL:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def quick_creation() -> Iterator[None]:
    """Build models without the time their initialisation takes; buffers that are computed stay computed."""
    orthogonal = nn.init.orthogonal_
    nn.init.orthogonal_ = lambda tensor, *_, **__: tensor  # a factorisation of what was never filled
    try:
        with _SkipRandomFill():
            yield
    finally:
        nn.init.orthogonal_ = orthogonal
