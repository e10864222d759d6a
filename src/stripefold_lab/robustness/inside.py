"""``noise_inside``: noise in the layers of a trained network while it is evaluated."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.errors import ConfigError
from stripefold_lab.robustness.kinds import KINDS
from stripefold_lab.training.noise_hooks import backbone_layers, batch_norms, disturb, hooked
from stripefold_lab.training.seeding import derive_seed

KERNELS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
INSIDE = tuple(name for name, kind in KINDS.items() if kind.family == "inside")


@contextmanager
def noise_inside(model: nn.Module, kind: str, severity: int, *, images: int, seed: int = 0) -> Iterator[None]:
    """A network whose layers are disturbed; as it was afterwards, also behind an exception.

    ``batch-constant`` and ``batch-random``: every BatchNorm normalises to ``N_a x + N_b``; constant: N_a = 1 +
    strength and N_b = strength; random: both normal around 1 and 0, of that deviation, for every image and channel.
    ``layer-constant`` and ``layer-random``: the output of every convolution and linear layer is moved by strength times
    the deviation of that output over the image; random: times normal noise on every value.

    The noise of an image follows from (seed, kind, layer, index of the image) and not from the batch it is in; a layer
    has the same name in the backbone, with gates and folded, so all of them meet the same noise.

    Args:
        model: A network whose one argument is a batch of images (N, C, H, W), and whose layers keep N in front.
        kind: A kind of the family ``inside``.
        severity: 1 to 5; 0 disturbs nothing.
        images: How many images one pass over the data has; the next pass meets the same noise.
        seed: Of the noise.

    Layers that the network never called (it may use their weights itself, as ``nn.MultiheadAttention`` does) are named
    in a warning: no noise reached them.

    Raises:
        ConfigError: If the kind is none of these, the network has no such layer, or a layer does not keep N in front
            (raised when the network runs).
    """
    if kind not in INSIDE:
        raise ConfigError(f"no noise inside a network is called {kind!r}; choose one of {', '.join(INSIDE)}")
    if severity == 0:
        yield
        return
    noise = _Noise(kind, KINDS[kind].strength(severity), images=images, seed=seed)
    layers = noisy_layers(model, kind)
    handle = model.register_forward_pre_hook(noise.count)
    try:
        with hooked(layers, noise.on_batch_norm if kind.startswith("batch") else noise.on_layer):
            yield
    finally:
        handle.remove()
    noise.tell_missed(layers)


def noisy_layers(model: nn.Module, kind: str) -> dict[str, nn.Module]:
    """What ``noise_inside`` disturbs, under the names of the plain backbone.

    Args:
        model: Any network.
        kind: A kind of the family ``inside``.

    Raises:
        ConfigError: If the network has none, or a BatchNorm that cannot take noise.
    """
    if kind.startswith("batch"):
        return batch_norms(model)
    found = backbone_layers(model).items()
    layers = {name: layer.called for name, layer in found if isinstance(layer.module, KERNELS)}
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no convolution and no linear layer to disturb")
    return layers


class _Noise:
    """The hooks of one kind and strength; knows which images are in the batch."""

    def __init__(self, kind: str, strength: float, *, images: int, seed: int) -> None:
        self._kind = kind
        self._strength = strength
        self._images = images
        self._seed = seed
        self._first = self._next = self._size = 0
        self._reached: set[str] = set()

    def count(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Before the network runs: which images these are."""
        self._size = len(inputs[0])
        self._first = self._next
        self._next = (self._first + self._size) % self._images

    def on_batch_norm(self, name: str, module: nn.Module, output: Tensor) -> Tensor:
        """(N, C, ...) as if statistics had been wrong."""
        self._check(name, output)
        strength = self._strength
        if self._kind == "batch-constant":
            scale = torch.full((output.shape[1],), 1 + strength)
            return disturb(output, module, scale, torch.full_like(scale, strength))
        draws = self._drawn(name, (2, output.shape[1]))
        return disturb(output, module, 1 + strength * draws[:, 0], strength * draws[:, 1])

    def on_layer(self, name: str, module: nn.Module, output: Tensor) -> Tensor:
        """(N, ...) moved by a share of each image's own deviation."""
        self._check(name, output)
        spread = output.flatten(1).std(dim=1, correction=0).view(-1, *(1,) * (output.dim() - 1))
        if self._kind == "layer-constant":
            return output + self._strength * spread
        return output + self._strength * spread * self._drawn(name, output.shape[1:]).to(output)

    def _drawn(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Normal numbers (N, *shape), for each image its own."""
        purpose = f"{self._kind}, {name}"
        seeds = (derive_seed(self._seed, purpose, self._first + place) for place in range(self._size))
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def tell_missed(self, layers: Iterable[str]) -> None:
        """Warn of layers that were never called, where the network was."""
        missed = [name for name in layers if name not in self._reached] if self._size else []
        if missed:
            warnings.warn(
                f"no noise reached {', '.join(map(repr, missed[:3]))}{' ...' if len(missed) > 3 else ''}: the network "
                "did not call them as modules",
                stacklevel=4,
            )

    def _check(self, name: str, output: Any) -> None:
        self._reached.add(name)
        if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != self._size:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError(
                f"no noise can be put behind {name!r}: {self._size} images went in, {found} came out, so it is not "
                "known which image is where; leave out the kinds of the family inside"
            )
