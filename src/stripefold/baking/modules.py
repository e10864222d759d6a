"""The per-channel multiplication that stays in a baked model where a constant does not fold."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.algebra.scale import scale_activation
from stripefold.errors import BakeError
from stripefold.modules.tensors import tensors_in


class ConstantScale(nn.Module):
    """y = v (.) x, with v a parameter; takes the place of a whole attention module.

    Args:
        v: the scale, shape (C,).
        axis: the channel axis of x: 1, -1, or any other from 0.
    """

    def __init__(self, v: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(v.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Scale a feature map; its shape and dtype stay."""
        return scale_activation(x, self.weight, self.axis)

    def extra_repr(self) -> str:
        """Width and axis."""
        return f"{self.weight.numel()}, axis={self.axis}"


class ConstantShift(nn.Module):
    """y = x + b, with b a parameter; what is left of the summand of an affine attention.

    Args:
        b: what is added, shape (C,).
        axis: the channel axis of x: 1, -1, or any other from 0.
    """

    def __init__(self, b: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.bias = nn.Parameter(b.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Shift the channels of a feature map; its shape and dtype stay."""
        behind = 0 if self.axis == -1 else x.dim() - 1 - self.axis
        return x + self.bias.to(x.dtype).reshape(-1, *(1,) * behind)

    def extra_repr(self) -> str:
        """Width and axis."""
        return f"{self.bias.numel()}, axis={self.axis}"


class ConstantGate(nn.Module):
    """The constant v, once per sample; takes the place of a module that returns a gate.

    Args:
        v: the scale, shape (C,).
        shape: of the gate for one sample, such as (C, 1, 1).
        once: v is returned as one row, which broadcasts: no operation is left.
    """

    def __init__(self, v: Tensor, shape: tuple[int, ...], *, once: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(v.detach().clone().reshape(1, *shape))
        self.shape, self.once = tuple(shape), once

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """v for every sample of the first tensor given, (N, *shape); the arguments' values do not matter.

        Raises:
            BakeError: no tensor among the arguments.
        """
        if self.once:
            return self.weight
        return self.weight.expand(_samples((args, kwargs)), *self.shape).clone()  # callers may write into it

    def extra_repr(self) -> str:
        """The shape for one sample."""
        return f"shape={self.shape}"


class Idle(nn.Module):
    """Takes the place of a module whose result nothing needs any more, but whose caller still calls it.

    Args:
        shape: of what it returned for one sample.
        like: tells device and dtype.
        once: one row is returned, which broadcasts: no operation is left.
    """

    ones: Tensor

    def __init__(self, shape: tuple[int, ...], like: Tensor, *, once: bool = False) -> None:
        super().__init__()
        self.shape, self.once = tuple(shape), once
        self.register_buffer("ones", like.new_ones(1, *shape), persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Ones, (N, *shape).

        Raises:
            BakeError: no tensor among the arguments.
        """
        return self.ones if self.once else self.ones.expand(_samples((args, kwargs)), *self.shape)

    def extra_repr(self) -> str:
        """The shape for one sample."""
        return f"shape={self.shape}"


def _samples(arguments: Any) -> int:
    for tensor in tensors_in(arguments):
        return tensor.shape[0]
    raise BakeError("a constant gate was called without a tensor, so that the number of samples is unknown")


def like_parameter(v: Tensor, module: nn.Module, model: nn.Module) -> Tensor:
    """v on the device and in the dtype of a module's parameters, or of its model's where it has none."""
    for tensor in chain(module.parameters(), model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            return v.to(tensor.device, tensor.dtype)
    return v.to(torch.get_default_dtype())
