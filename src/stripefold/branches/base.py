"""What a branch has to be, and what its layers say about themselves."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.algebra.kernels import Merged
from stripefold.errors import FoldError
from stripefold.layers.rule import rule_for
from stripefold.layers.substitute import substituted
from stripefold.modules.foldable import Foldable


class Branch(nn.Module):
    """One branch: linear in eval mode, with a kernel on the block's grid."""

    @abstractmethod
    def merged(self) -> Merged:
        """The branch in eval mode as a kernel on the grid and a bias, float64, differentiable.

        Raises:
            FoldError: it holds something that does not merge.
        """

    @abstractmethod
    def zero_init_(self) -> None:
        """Make the branch give zeros, in training and in eval mode, in such a way that it can learn to give more."""


class PrimaryBranch(Branch):
    """The branch that carries the convolution's own numbers; every block has one, its first."""

    @abstractmethod
    def load_conv_(self, convolution: Any) -> None:
        """Take over the weight, the bias and their flags."""

    @abstractmethod
    def init_identity_(self) -> None:
        """Compute in eval mode exactly what the adopted convolution does."""

    @abstractmethod
    def flags(self) -> tuple[bool, bool]:
        """``requires_grad`` of the folded weight and bias."""


def bare(layer: nn.Module) -> nn.Module:
    """The layer itself, where gates are attached to it."""
    base = layer._modules.get("base") if isinstance(layer, Foldable) else None
    return layer if base is None else base


def memory_format(weight: Tensor) -> torch.memory_format:
    """Whether a convolution's weight lies channels last; a 1x1 kernel that could be either does not."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(weight.dim())
    if last is None or weight.is_contiguous() or not weight.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A BatchNorm's scale and shift in eval mode, shape (C,), float64, its gates included.

    Raises:
        FoldError: it is no BatchNorm any more, or keeps no running statistics.
    """
    layer = bare(norm)
    rule = rule_for(layer)
    effective = substituted(layer, {key: getattr(norm, key, None) for key in ("weight", "bias")})
    numbers = None if rule is None or not rule.commutes else rule.affine_map(effective)
    if numbers is None:
        raise FoldError(f"{type(layer).__name__} stands where a BatchNorm was, and does not merge into a kernel")
    if isinstance(numbers, str):
        raise FoldError("a BatchNorm in it keeps no running statistics, so that its scale depends on the batch")
    return numbers
