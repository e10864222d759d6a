"""What stays in a baked model where a constant does not fold: an honest per-channel multiplication."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stripefold.algebra.scale import scale_activation
from stripefold.errors import BakeError
from stripefold.surgery.values import tensors_in


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


class ConstantGate(nn.Module):
    """The constant v, once per sample; takes the place of a module that returns a gate.

    Args:
        v: the scale, shape (C,).
        shape: of the gate for one sample, such as (C, 1, 1).
    """

    def __init__(self, v: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(v.detach().clone())
        self.shape = tuple(shape)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """v for every sample of the first tensor given, (N, *shape); the arguments' values do not matter.

        Raises:
            BakeError: no tensor among the arguments.
        """
        for tensor in tensors_in((args, kwargs)):
            return self.weight.reshape(1, *self.shape).expand(tensor.shape[0], *self.shape)
        raise BakeError("a constant gate was called without a tensor, so that the number of samples is unknown")

    def extra_repr(self) -> str:
        """The shape for one sample."""
        return f"shape={self.shape}"


class Idle(nn.Module):
    """Takes the place of a module whose result nothing needs any more, but whose caller still calls it.

    Args:
        shape: of what it returned for one sample.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """A single 1 that is seen as (N, *shape).

        Raises:
            BakeError: no tensor among the arguments.
        """
        for tensor in tensors_in((args, kwargs)):
            return tensor.new_ones(()).expand(tensor.shape[0], *self.shape)
        raise BakeError("a module that does nothing was called without a tensor, so that the samples are unknown")

    def extra_repr(self) -> str:
        """The shape for one sample."""
        return f"shape={self.shape}"


def like_parameter(v: Tensor, module: nn.Module, model: nn.Module) -> Tensor:
    """v on the device and in the dtype of a module's parameters, or of its model's where it has none."""
    for tensor in (*module.parameters(), *model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return v.to(tensor.device, tensor.dtype)
    return v.to(torch.get_default_dtype())
