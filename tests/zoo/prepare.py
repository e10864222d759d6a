"""Make a model on which a wrong fold shows: everything random, statistics calibrated and then jittered.

Fresh models hide errors: timm zero-initialises the last norm of many branches, LayerScale starts at 1e-5, and with
running statistics of 0 and 1 the output hardly depends on the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stripefold.asr.sites import attached_sites
from stripefold.modules.example import Example, run_example

_POOL_SIZE = 1_000_003  # a prime, so that the rows of a weight are not copies of each other
_SHIFTS = ("bias", "beta", "shift", "b")
_PROJECTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Bilinear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Randomness:
    """Normal numbers from one pool: a model of 60 million weights is filled as fast as memory is copied.

    Args:
        seed: of everything drawn.
        gain: of the weights, relative to what keeps activations at order one.
    """

    def __init__(self, seed: int, gain: float = 1.0) -> None:
        self.gain = gain
        self.generator = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(_POOL_SIZE, generator=self.generator)

    def fill_normal_(self, tensor: Tensor, std: float) -> None:
        """Fill with N(0, std^2)."""
        start = int(torch.randint(_POOL_SIZE, (), generator=self.generator))
        needed, parts = tensor.numel(), [self._pool[start:]]
        while sum(part.numel() for part in parts) < needed:
            parts.append(self._pool)
        tensor.copy_(torch.cat(parts)[:needed].view(tensor.shape))
        tensor.mul_(std)

    def uniform(self, like: Tensor, low: float, high: float) -> Tensor:
        """Uniform numbers in the shape and dtype of another tensor."""
        return (torch.rand(like.shape, generator=self.generator) * (high - low) + low).to(like.dtype)


def randomise_(model: nn.Module, randomness: Randomness) -> None:
    """Fill every parameter, each tensor once, by what its shape and its owner say it is."""
    seen: set[int] = set()
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    _fill_(module, name, parameter, randomness)


def _fill_(module: nn.Module, name: str, tensor: Tensor, randomness: Randomness) -> None:
    if not tensor.is_floating_point():
        return
    if tensor.numel() == 1:  # a temperature or a step size: around where the library starts it
        start = float(tensor)
        tensor.fill_(
            (start if start == start and start else 1.0) * float(randomness.uniform(torch.zeros(()), 0.8, 1.2))
        )
    elif name.rpartition("_")[2] in _SHIFTS and tensor.dim() == 1:
        randomness.fill_normal_(tensor, 0.1)
    elif tensor.numel() == max(tensor.shape):  # gains, LayerScale, class tokens, slopes
        tensor.copy_(randomness.uniform(tensor, 0.5, 1.5))
    else:
        randomness.fill_normal_(tensor, randomness.gain * _spread(module, tensor))


def _spread(module: nn.Module, weight: Tensor) -> float:
    """Standard deviation that keeps activations at order one."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return 1.0
    if isinstance(module, _TRANSPOSED):
        inputs = weight.shape[0] // module.groups
        stride = int(torch.tensor(module.stride).prod())
        return float((inputs * weight[0, 0].numel() / stride) ** -0.5)
    if type(module).__name__ == "Conv1D":  # transformers: weight (in, out)
        return float(weight.shape[0] ** -0.5)
    if isinstance(module, _PROJECTIONS):
        gain = 1.0 if isinstance(module, nn.Linear) else 2**0.5
        return float(gain * weight[0].numel() ** -0.5)
    if weight.shape[0] == 1:  # position embeddings (1, N, D)
        return 0.5
    return float(min(0.5, (weight.numel() / weight.shape[0]) ** -0.5))


def randomise_gates_(model: nn.Module, randomness: Randomness) -> None:
    """Random psi and theta of every gate, with the hidden units kept alive as at a real start.

    Sigmoid gates give about one half: a network without normalisations, gated at every layer, would fade away, so
    there the layer's weight makes up for it.
    """
    with torch.no_grad():
        for site in attached_sites(model).values():
            for gate in site.static_gates:
                for name, parameter in gate.attention.named_parameters():
                    std = 0.2 if name.endswith("bias") else parameter[0].numel() ** -0.5
                    randomness.fill_normal_(parameter, std)
                randomness.fill_normal_(gate.psi, 1.0)
                gate.attention.reactivate_dead_units_(gate.psi)
            if isinstance(site.base, (*_PROJECTIONS, *_TRANSPOSED)):
                site.base.weight.div_(site.scale().abs().mean().clamp(min=0.1))


def statistics(model: nn.Module) -> list[nn.Module]:
    """Every module with running statistics, frozen ones too."""
    return [
        module
        for module in model.modules()
        if isinstance(module._buffers.get("running_mean"), Tensor)
        and isinstance(module._buffers.get("running_var"), Tensor)
    ]


def calibrate_frozen_(model: nn.Module, example: Example) -> None:
    """Set the statistics that training never touches (FrozenBatchNorm2d) from one batch."""
    frozen = [module for module in statistics(model) if not hasattr(module, "momentum")]
    if not frozen:
        return
    handles = [module.register_forward_pre_hook(_measure_) for module in frozen]
    try:
        with torch.no_grad():
            run_example(model.eval(), example)
    finally:
        for handle in handles:
            handle.remove()


def _measure_(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    dims = [dim for dim in range(args[0].dim()) if dim != 1]
    module.running_mean.copy_(args[0].mean(dims))
    module.running_var.copy_(args[0].var(dims) if args[0][:, 0].numel() > 1 else torch.ones_like(module.running_var))


@contextmanager
def statistics_of_the_last_batch(model: nn.Module) -> Iterator[None]:
    """Inside, each training step leaves its own batch's statistics in the model, and nothing older."""
    norms = [module for module in statistics(model) if hasattr(module, "momentum")]
    before = [module.momentum for module in norms]
    for module in norms:
        module.momentum = 1.0
    try:
        yield
    finally:
        for module, momentum in zip(norms, before, strict=True):
            module.momentum = momentum


def jitter_(model: nn.Module, randomness: Randomness) -> None:
    """Move calibrated statistics a little; a variance measured on two numbers is kept away from zero.

    With a gain below 1 it is also kept away from vanishing beside the mean, whose subtraction would cancel digits.
    """
    floor = 0.6 * (1 - randomness.gain)
    with torch.no_grad():
        for module in statistics(model):
            mean, variance = module.running_mean, module.running_var
            mean.add_(variance.clamp(min=0).sqrt() * randomness.uniform(mean, -0.2, 0.2))
            variance.mul_(randomness.uniform(variance, 0.8, 1.25)).add_(
                0.1 * variance.mean() + floor * mean.square() + 1e-6
            )
