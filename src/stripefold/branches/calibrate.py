"""Measure the BatchNorms inside new blocks on data, so that training mode starts from the function of eval mode.

A BatchNorm with mean m and variance s^2 of its input, gain ``scale sqrt(s^2 + eps)`` and shift ``shift + scale m``
computes ``scale x + shift`` in eval mode, and in training mode on every batch of the same statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.algebra.merge import batchnorm_scale_shift
from stripefold.branches.block import BranchBlock
from stripefold.errors import BranchError
from stripefold.modules.example import example_to, run_example
from stripefold.modules.modules import first_parameter
from stripefold.modules.preserve_state import preserve_state
from stripefold.modules.stand_in import is_plain


@dataclass
class _Moments:
    """Count, mean (C,) and sum of squared differences (C,), float64, merged batch by batch (Chan et al. 1979)."""

    count: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Take in a batch (N, C, *map)."""
        rows = x.detach().double().transpose(0, 1).flatten(1)
        count, mean = rows.shape[1], rows.mean(1)
        squares = (rows - mean.unsqueeze(1)).square().sum(1)
        total, difference = self.count + count, mean - self.mean
        self.squares = self.squares + squares + difference.square() * (self.count * count / total)
        self.mean = self.mean + difference * (count / total)
        self.count = total


def calibrate_(
    model: nn.Module, convolutions: Mapping[str, nn.Module], blocks: Mapping[str, BranchBlock], data: Any
) -> None:
    """Run the model as it is on the data, each block beside its convolution, and restate the blocks' BatchNorms.

    Args:
        model: the model before the blocks are swapped in; it stays as it is.
        convolutions: by path.
        blocks: by the same paths; changed.
        data: batches, or one tensor.

    Raises:
        BranchError: no batch, a batch the model does not run on, a convolution that no batch reached, statistics that
            are not finite.
    """
    moments: dict[nn.Module, _Moments] = {
        module: _Moments() for block in blocks.values() for module in block.modules() if _is_norm(module)
    }
    modes = {module: module.training for block in blocks.values() for module in block.modules()}
    handles = [norm.register_forward_pre_hook(lambda m, args: moments[m].add(args[0])) for norm in moments]
    try:
        for block in blocks.values():
            block.eval()
        count = _run(model, list(convolutions), blocks, data)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    if count == 0:
        raise BranchError("data= gave no batch: give an iterable of batches, or one tensor")
    for name, block in blocks.items():
        _restate(name, block, moments)


def _is_norm(module: nn.Module) -> bool:
    return is_plain(module, nn.modules.batchnorm._BatchNorm)


def _run_beside(block: BranchBlock, convolution: nn.Module, args: tuple[Any, ...]) -> None:
    block(*args)


def _run(model: nn.Module, names: list[str], blocks: Mapping[str, BranchBlock], data: Any) -> int:
    like = first_parameter(model)
    assert like is not None  # there is a convolution
    count = 0
    with preserve_state(model) as copied:
        for name in names:
            run = partial(_run_beside, blocks[name])
            copied.get_submodule(name).register_forward_pre_hook(run)
        for batch in _batches(data):
            count += 1
            try:
                run_example(copied, example_to(batch, like.device, like.dtype))
            except Exception as error:  # a user's forward may raise anything
                raise BranchError(
                    f"{type(model).__name__} does not run on batch {count} of data= ({type(error).__name__}: {error}). "
                    "Give tensors, (images, labels) or mappings of keyword arguments"
                ) from error
    return count


def _batches(data: Any) -> Iterator[Any]:
    """What the model is called with, batch by batch: of a tuple or list its first entry."""
    if isinstance(data, (Tensor, Mapping)):
        yield data
        return
    try:
        batches = iter(data)
    except TypeError as error:
        raise BranchError(f"data= is {type(data).__name__}: give an iterable of batches, or one tensor") from error
    for batch in batches:
        yield batch[0] if isinstance(batch, (tuple, list)) and batch else batch


@torch.no_grad()
def _restate(name: str, block: BranchBlock, moments: Mapping[nn.Module, _Moments]) -> None:
    for norm in (module for module in block.modules() if _is_norm(module)):
        found, layer = moments[norm], _any(norm)
        if found.count == 0:
            raise BranchError(
                f"no batch of data= reached {name!r}: leave it out with where=..., or give data that the model sends "
                "through it"
            )
        mean, variance = torch.as_tensor(found.mean), torch.as_tensor(found.squares) / found.count
        if not bool(mean.isfinite().all() and variance.isfinite().all()):
            raise BranchError(f"data= gives values at {name!r} that are not finite: look at the model's weights")
        scale, shift = batchnorm_scale_shift(layer.running_mean, layer.running_var, layer.eps, layer.weight, layer.bias)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
        layer.weight.copy_(scale * (layer.running_var.double() + layer.eps).sqrt())
        layer.bias.copy_(shift + scale * layer.running_mean.double())


def _any(module: nn.Module) -> Any:
    return module
