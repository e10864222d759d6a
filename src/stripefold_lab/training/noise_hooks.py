"""Hooks that add noise to a network's layers, and the noise of a training run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stripefold.asr.gated import Gated
from stripefold.errors import ConfigError, FoldError
from stripefold.layers.accepts import is_batchnorm
from stripefold.layers.probe import check_affine
from stripefold.layers.rule import is_taught, rule_for
from stripefold.modules.stand_in import is_plain
from stripefold_lab.training.batch_noise import BatchNoise
from stripefold_lab.training.seeding import derive_seed


@dataclass(frozen=True)
class Layer:
    """A layer of the backbone, in a network with or without attention.

    Attributes:
        module: The layer.
        called: What the network calls in its place: the site around it, where there is one.
    """

    module: nn.Module
    called: nn.Module


def backbone_layers(model: nn.Module) -> dict[str, Layer]:
    """Every module under the name that it has in the plain backbone; what was attached is left out.

    So the same name is the same layer of a backbone, of the network with gates, and of the folded one.

    Args:
        model: Any network.
    """
    found: dict[str, Layer] = {}
    seen: set[int] = set()
    for name, layer in _walk("", model, model):
        if id(layer.module) not in seen:
            seen.add(id(layer.module))
            found[name] = layer
    return found


def _walk(name: str, module: nn.Module, called: nn.Module) -> Iterator[tuple[str, Layer]]:
    if isinstance(module, Gated):
        yield from _walk(name, module.base, module)
        return
    yield name, Layer(module, called)
    for key, child in module.named_children():
        yield from _walk(f"{name}.{key}" if name else key, child, child)


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The backbone's BatchNorms by name.

    Args:
        model: Any network.

    Raises:
        ConfigError: If there is none, or one of a type that does not show what it normalised.
    """
    found = {name: layer.module for name, layer in backbone_layers(model).items()}
    norms: dict[str, nn.Module] = {
        name: module for name, module in found.items() if is_plain(module, _BatchNorm) or is_batchnorm(module)
    }
    for name, module in norms.items():
        if not _shows_what_it_normalised(module):
            raise ConfigError(
                f"no noise can be put into {name!r}: {type(module).__name__} (exact type) may do more than normalise; "
                "take a network with torch's own BatchNorms, teach its type (register_rule), or leave the noise out"
            )
    if not norms:
        raise ConfigError(f"{type(model).__name__} has no BatchNorm, so there are no batch statistics to disturb")
    return norms


def _shows_what_it_normalised(norm: nn.Module) -> bool:
    """A type without a rule may hide an activation behind the affine part, and others are known to have one."""
    rule = rule_for(norm)
    if rule is None or not is_batchnorm(norm) or not rule.commutes:
        return False
    try:
        if is_taught(rule):
            check_affine(norm, rule)
    except FoldError:
        return False
    return True


def disturb(output: Tensor, norm: nn.Module, scale: Tensor, shift: Tensor) -> Tensor:
    """What a BatchNorm would have given, had its normalised input been ``scale * input + shift``.

    ``y = gamma x + beta`` becomes ``scale (y - beta) + gamma shift + beta``.

    Args:
        output: What it gave, (N, C, ...).
        norm: The layer; inside a site its weight and bias are the scaled ones, as its output is.
        scale: (C,) or (N, C).
        shift: (C,) or (N, C).
    """
    trailing = (1,) * (output.dim() - 2)
    one, zero = torch.ones((), device=output.device), torch.zeros((), device=output.device)
    gamma = one if norm.weight is None else norm.weight.view(1, -1, *trailing)  # type: ignore[operator]
    beta = zero if norm.bias is None else norm.bias.view(1, -1, *trailing)  # type: ignore[operator]
    a, b = (values.to(output.device).reshape(-1, output.shape[1], *trailing) for values in (scale, shift))
    return (a * (output - beta) + gamma * b + beta).to(output.dtype)


@contextmanager
def hooked(modules: dict[str, nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Forward hooks on modules, taken off again whatever happens.

    Args:
        modules: Name -> module.
        hook: Called with the name, the module (inside a site a view of it with scaled tensors) and its output; returns
            the new output.
    """

    def named(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda module, _, output: hook(name, module, output)

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(named(name)).remove)
        yield


class _Steps(lightning.Callback):
    """Knows the step, from which the noise of a batch follows."""

    step = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.step = trainer.global_step


@contextmanager
def training_noise(model: nn.Module, noise: BatchNoise | None, seed: int) -> Iterator[list[lightning.Callback]]:
    """Noise in the BatchNorms of a network while it trains; evaluation in between sees none.

    The draws follow from (seed, layer, step): backbone and attached network meet the same, and a resumed run goes on
    as if it had not been stopped.

    Args:
        model: The network, with or without gates.
        noise: Which; None is none.
        seed: Of the run.

    Yields:
        The callbacks that the trainer needs.

    Raises:
        ConfigError: If noise is asked for and the network has no BatchNorm that can take it.
    """
    if noise is None:
        yield []
        return
    steps = _Steps()

    def hook(name: str, module: nn.Module, output: Tensor) -> Tensor:
        if not module.training:
            return output
        scale, shift = _drawn(noise, output.shape[1], derive_seed(seed, f"batch noise, {name}", steps.step))
        return disturb(output, module, scale, shift)

    with hooked(batch_norms(model), hook):
        yield [steps]


def _drawn(noise: BatchNoise, channels: int, seed: int) -> tuple[Tensor, Tensor]:
    """N_a and N_b, (C,) each."""
    if noise.kind == "constant":
        return torch.full((channels,), 1 + noise.scale), torch.full((channels,), noise.shift)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(2, channels, generator=generator)
    return 1 + noise.scale * draws[0], noise.shift * draws[1]
