"""Example inputs whose leading dimension is the batch: resize it, and name it as open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.utils._pytree import tree_leaves, tree_map

from stripefold.errors import ExportError
from stripefold.modules.example import Example, examples_of

TRACED = 2
"""Batch size of the trace: torch takes a 1 for a constant."""


def several(examples: Example | list[Example] | None) -> list[Example]:
    """One input, a list of several, or none, as a list."""
    if examples is None:
        return []
    return examples_of(examples)


def batch_size(example: Example) -> int:
    """Leading dimension of the first tensor of an example.

    Raises:
        ExportError: no tensor in it, or one without a batch.
    """
    first = next((leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)), None)
    if first is None or first.dim() == 0 or first.shape[0] == 0:
        what = "holds no tensor" if first is None else f"begins with a tensor of shape {tuple(first.shape)}"
        raise ExportError(f"the example {what}: give inputs whose first dimension is the batch, as in (2, 3, 32, 32)")
    return int(first.shape[0])


def resized(example: Example, batch: int) -> Example:
    """The example with another batch size, its rows repeated or left out.

    Args:
        example: tensor, tuple or mapping; every tensor whose leading dimension is the example's batch is resized.
        batch: the wanted batch size.
    """
    old = batch_size(example)
    rows = torch.arange(batch) % old
    return tree_map(lambda leaf: leaf[rows.to(leaf.device)] if _has_batch(leaf, old) else leaf, example)


def noise_like(example: Example, batch: int, seed: int) -> Example:
    """Standard normal numbers in place of the example's floating-point tensors; all else (token ids, masks) as it is.

    Args:
        example: tensor, tuple or mapping.
        batch: the wanted batch size.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)

    return tree_map(noise, resized(example, batch))


def arguments_of(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call with this example."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, tuple) else ((example,), {})


def open_batch(example: Example) -> Any:
    """What `torch.export` takes as `dynamic_shapes` where the batch is left open."""
    size, batch = batch_size(example), Dim("batch")
    positional, keywords = arguments_of(example)
    return tree_map(lambda leaf: {0: batch} if _has_batch(leaf, size) else None, keywords or positional)


def input_leaves(example: Example) -> list[Tensor]:
    """The tensors of an example in the order in which an exported program takes them."""
    return [leaf for leaf in tree_leaves(arguments_of(example)) if isinstance(leaf, Tensor)]


def _has_batch(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size
