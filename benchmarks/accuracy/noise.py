"""Noise in BatchNorm by way of its parameters: nothing is added to the activation maps, and CUDA graphs can hold it.

``gamma (a x + b) + beta`` is a BatchNorm with ``a gamma`` and ``beta + b gamma``. So the parameters are changed for a
step, its gradients are brought back by the chain rule, and the parameters are put back bit for bit.
Gates scale the changed parameters, which is what `stripefold_lab.training.noise_hooks` does to the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stripefold_lab.training.batch_noise import BatchNoise
from stripefold_lab.training.noise_hooks import batch_norms
from stripefold_lab.training.seeding import derive_seed


class ParameterNoise:
    """The noise of one network.

    Args:
        model: On its device.
        noise: Which noise.
        seed: Decides the draws, together with the step: networks with the same BatchNorms meet the same noise.
    """

    def __init__(self, model: nn.Module, noise: BatchNoise, seed: int) -> None:
        norms = list(batch_norms(model).values())
        self._noise, self._seed = noise, seed
        self._weights: list[Tensor] = [norm.weight for norm in norms]  # type: ignore[misc]
        self._biases: list[Tensor] = [norm.bias for norm in norms]  # type: ignore[misc]
        widths = [len(weight) for weight in self._weights]
        self._values = torch.zeros(2, sum(widths), device=self._weights[0].device)
        self._scales, self._shifts = (list(row.split(widths)) for row in self._values)
        self.draw(0)

    def draw(self, step: int) -> None:
        """Set the noise of a step."""
        self._values.copy_(self._drawn(step))

    def _drawn(self, step: int) -> Tensor:
        noise, count = self._noise, self._values.shape[1]
        if noise.kind == "constant":
            return torch.tensor([1 + noise.scale, noise.shift])[:, None].expand(2, count)
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "batch noise", step))
        draws = torch.randn(2, count, generator=generator)
        return torch.stack([1 + noise.scale * draws[0], noise.shift * draws[1]])

    @contextmanager
    def on(self) -> Iterator[None]:
        """The parameters carry the noise inside of the block; gradients that are there at its end are brought back."""
        with torch.no_grad():
            weights, biases = ([each.clone() for each in group] for group in (self._weights, self._biases))
            torch._foreach_add_(self._biases, torch._foreach_mul(self._weights, self._shifts))
            torch._foreach_mul_(self._weights, self._scales)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, weights)
                torch._foreach_copy_(self._biases, biases)
        if any(weight.grad is None for weight in self._weights):
            return
        with torch.no_grad():
            gradients = [weight.grad for weight in self._weights]
            torch._foreach_mul_(gradients, self._scales)
            torch._foreach_add_(gradients, torch._foreach_mul([bias.grad for bias in self._biases], self._shifts))
