"""What is timed: one training step, one inference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stripefold_lab.bench.timing import Candidate, Settings


def synthetic_batch(shape: Sequence[int], classes: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return random images of `shape` (N, C, H, W) and labels of shape (N,) on the settings' device."""
    generator = torch.Generator().manual_seed(settings.seed)
    images = torch.randn(tuple(shape), generator=generator).to(settings.device)
    labels = torch.randint(classes, (shape[0],), generator=generator).to(settings.device)
    if settings.channels_last:
        images = images.to(memory_format=torch.channels_last)
    return images, labels


def place(model: nn.Module, settings: Settings) -> nn.Module:
    """Move a model to where, and into the layout in which, the settings want it."""
    model = model.to(settings.device)
    if not settings.channels_last:
        return model
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return, unused-ignore]


def training_step(name: str, model: nn.Module, batch: tuple[Tensor, Tensor], settings: Settings) -> Candidate:
    """Return a candidate: forward, cross-entropy, backward, one step of SGD with momentum.

    Args:
        name: The row's name.
        model: Trained in place.
        batch: Images (N, C, H, W) and labels (N,).
        settings: Device, dtype and layout.
    """
    model = place(model, settings).train()
    images, labels = batch
    # Zero learning rate: the same work, and the weights stay where every round finds them.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
    context = _precision(settings)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with context():
            loss = F.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        optimizer.step()

    def held() -> list[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
        return [images, labels, *model.parameters(), *model.buffers(), *state]

    return Candidate(name=name, run=run, held=held)


def inference(name: str, model: nn.Module, images: Tensor, settings: Settings) -> Candidate:
    """Return a candidate: the model's answer to `images` (N, C, H, W) in eval mode, without gradients."""
    model = place(model, settings).eval()
    context = _precision(settings)

    def run() -> object:
        with torch.inference_mode(), context():
            return model(images)

    return Candidate(name=name, run=run, held=lambda: [images, *model.parameters(), *model.buffers()])


def _precision(settings: Settings) -> Callable[[], AbstractContextManager[object]]:
    if settings.dtype == "float32":
        return contextlib.nullcontext
    device_type = torch.device(settings.device).type
    return lambda: torch.autocast(device_type, dtype=torch.bfloat16)
