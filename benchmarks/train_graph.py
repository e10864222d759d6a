"""One training step, replayed as a CUDA graph on a stream of its own, so that several small networks share a GPU."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WARMUP = 3


class Step:
    """Forward, backward and update on batches of one shape.

    A small network's step is hundreds of kernels of a few microseconds: launched one by one from Python, the device
    idles. Captured once, they are one launch. The update stays outside of the graph, since the rate changes.

    Args:
        model: in training mode, on ``device``.
        optimizer: over its parameters.
        shape: of one batch of bytes, (N, 3, H, W).
        prepare: bytes to the network's input.
        device: where everything lies.
        graph: capture (needs CUDA); else every step is launched as it is.
        half: compute under autocast to bfloat16; parameters and loss stay float32.
        around: gives a context for each forward and backward pass, such as noise in the parameters; captured with them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        shape: tuple[int, ...],
        *,
        prepare: Callable[[Tensor], Tensor],
        device: torch.device,
        graph: bool,
        half: bool = False,
        around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.batch = shape[0]
        self._model, self._optimizer, self._prepare = model, optimizer, prepare
        self._images = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._labels = torch.zeros(shape[0], dtype=torch.long, device=device)
        self._loss = torch.zeros((), device=device)
        self._steps = 0
        self._half = half
        self._around = around
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream(device) if graph else None
        if graph:
            before = copy.deepcopy(model.state_dict())
            try:
                self._capture()
            except RuntimeError as error:
                print(f"not captured, every kernel is launched from Python: {error}")
                torch.cuda.synchronize()
            model.load_state_dict(before)  # BatchNorm has counted the warm-up
            self._loss.zero_()

    def __call__(self, images: Tensor, labels: Tensor, rate: float) -> None:
        """One step; returns before the device has finished. Synchronise before reading the model."""
        with self.stream():
            self._images.copy_(images)
            self._labels.copy_(labels)
            if self._graph is not None:
                self._graph.replay()
            else:
                self._optimizer.zero_grad(set_to_none=True)
                self._backward()
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
        self._steps += 1

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        """Where its kernels are queued: what changes a tensor that the graph reads has to be queued there, too."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def take_loss(self) -> float | None:
        """The mean loss since the last call; None where there was no step."""
        mean = self._loss.item() / self._steps if self._steps else None
        self._loss.zero_()
        self._steps = 0
        return mean

    def _backward(self) -> None:
        with self._around():
            with torch.autocast(self._images.device.type, torch.bfloat16, enabled=self._half, cache_enabled=False):
                logits = self._model(self._prepare(self._images))
            loss = F.cross_entropy(logits.float(), self._labels)
            loss.backward()
        self._loss += loss.detach()

    def _capture(self) -> None:
        """Warm up on the stream, then record."""
        stream = self._stream
        assert stream is not None
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                self._optimizer.zero_grad(set_to_none=True)
                self._backward()
        torch.cuda.synchronize()
        self._optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._backward()
        torch.cuda.synchronize()
        self._graph = graph
