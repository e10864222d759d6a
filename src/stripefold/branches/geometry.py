"""The grid of taps that a convolution reads, and the smaller kernels that lie on it.

Every branch of a block is a kernel on the grid of the convolution it stands for. ``frame`` hands a branch exactly the
part of the padded input that its taps read, so that stride, dilation, padding and padding mode of the training form are
those of the folded form by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

Axes = tuple[int, ...]
_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_FUNCTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True, kw_only=True)
class KernelWindow:
    """A kernel on a grid.

    Attributes:
        size: its taps, per axis.
        step: their distance in taps of the grid, per axis.
        offset: the tap of the grid under its first tap, per axis.
    """

    size: Axes
    step: Axes
    offset: Axes


@dataclass(frozen=True, kw_only=True)
class ConvGeometry:
    """A convolution without its numbers.

    Attributes:
        inputs: C_in.
        outputs: C_out.
        groups: of the convolution.
        size: kernel size, per axis.
        stride: per axis.
        dilation: per axis.
        before: padding in front of each axis.
        after: padding behind each axis.
        mode: padding mode, as ``nn.Conv2d`` names it.
    """

    inputs: int
    outputs: int
    groups: int
    size: Axes
    stride: Axes
    dilation: Axes
    before: Axes
    after: Axes
    mode: str

    @classmethod
    def of(cls, convolution: Any) -> ConvGeometry:
        """The grid of an ``nn.Conv1d``, ``Conv2d`` or ``Conv3d``."""
        before, after = _paddings(convolution)
        return cls(
            inputs=convolution.in_channels,
            outputs=convolution.out_channels,
            groups=convolution.groups,
            size=tuple(convolution.kernel_size),
            stride=tuple(convolution.stride),
            dilation=tuple(convolution.dilation),
            before=before,
            after=after,
            mode=convolution.padding_mode,
        )

    @property
    def axes(self) -> int:
        """1, 2 or 3 spatial axes."""
        return len(self.size)

    @property
    def kernel_shape(self) -> Axes:
        """(C_out, C_in / groups, *size)."""
        return (self.outputs, self.inputs // self.groups, *self.size)

    @property
    def keeps_map(self) -> bool:
        """Whether the input itself can be a branch: as many channels out as in, and no stride."""
        return self.inputs == self.outputs and set(self.stride) == {1}

    @property
    def whole(self) -> KernelWindow:
        """The convolution's own kernel."""
        return KernelWindow(size=self.size, step=(1,) * self.axes, offset=(0,) * self.axes)

    def centred(self, size: int | Sequence[int], step: int = 1) -> KernelWindow:
        """A kernel in the middle (of an even grid: before it); an axis of the grid with one tap keeps one.

        Args:
            size: taps, on every axis or per axis.
            step: their distance in taps of the grid.

        Raises:
            ValueError: it reaches beyond the grid.
        """
        sizes = (size,) * self.axes if isinstance(size, int) else tuple(size)
        taps = tuple(1 if whole == 1 else own for own, whole in zip(sizes, self.size, strict=True))
        reach = [(own - 1) * step + 1 for own in taps]
        if any(own > whole for own, whole in zip(reach, self.size, strict=True)):
            raise ValueError(f"a kernel of {taps} taps in steps of {step} is larger than one of {self.size}")
        offset = tuple((whole - own) // 2 for own, whole in zip(reach, self.size, strict=True))
        return KernelWindow(size=taps, step=(step,) * self.axes, offset=offset)

    def convolution(self, window: KernelWindow, *, outputs: int | None = None) -> nn.Module:
        """A convolution for a window of this grid; it pads by itself where ``frame`` leaves that to it."""
        dilation = tuple(own * step for own, step in zip(self.dilation, window.step, strict=True))
        return _CONVOLUTIONS[self.axes](
            self.inputs,
            outputs or self.outputs,
            window.size,
            stride=self.stride,
            padding=self._own_padding(window) or 0,
            dilation=dilation,
            groups=self.groups,
            bias=False,
        )

    def pointwise(self, outputs: int) -> nn.Module:
        """A 1x1 convolution of the input, before any stride or padding."""
        return _CONVOLUTIONS[self.axes](self.inputs, outputs, 1, groups=self.groups, bias=False)

    def unpadded(self, inputs: int) -> nn.Module:
        """The convolution itself for maps that are padded already, of another width."""
        return _CONVOLUTIONS[self.axes](
            inputs, self.outputs, self.size, stride=self.stride, dilation=self.dilation, groups=self.groups, bias=False
        )

    def norm(self, channels: int | None = None) -> nn.Module:
        """A BatchNorm for maps of this many axes."""
        return _NORMS[self.axes](channels or self.outputs)

    def convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution itself, (N, C_in, *map) -> (N, C_out, *map), with a kernel that was computed."""
        own = self._own_padding(self.whole)
        framed = self.frame(x, self.whole)
        result: Tensor = _FUNCTIONS[self.axes](
            framed, kernel, bias, stride=self.stride, padding=own or 0, dilation=self.dilation, groups=self.groups
        )
        return result

    def mix(self, x: Tensor, kernel: Tensor) -> Tensor:
        """A 1x1 convolution of the input, (N, C_in, *map), in the grid's groups, with a kernel that was computed."""
        result: Tensor = _FUNCTIONS[self.axes](x, kernel, groups=self.groups)
        return result

    def average(self, x: Tensor) -> Tensor:
        """The mean over the kernel's taps of a padded map (N, C, *map), with the grid's stride and dilation."""
        result: Tensor
        if set(self.dilation) == {1}:
            result = _POOLS[self.axes](x, self.size, self.stride)
        else:
            taps = x.new_full((self.outputs, 1, *self.size), 1 / math.prod(self.size))
            result = _FUNCTIONS[self.axes](x, taps, stride=self.stride, dilation=self.dilation, groups=self.outputs)
        return result

    def frame(self, x: Tensor, window: KernelWindow) -> Tensor:
        """What a window reads: x (N, C, *map) padded or cropped, unless its convolution pads by itself."""
        if self._own_padding(window) is not None:
            return x
        return _pad(x, self._margins(window), self.mode)

    def pad(self, x: Tensor, value: Tensor | None = None) -> Tensor:
        """The map (N, C, *map) with all its padding; zero padding puts a value (C,) there instead of zeros."""
        margins = list(zip(self.before, self.after, strict=True))
        if value is None or self.mode != "zeros" or not any(map(any, margins)):
            return _pad(x, margins, self.mode)
        border = value.to(x.dtype).reshape(-1, *(1,) * self.axes)
        return _pad(x - border, margins, self.mode) + border

    def subsample(self, x: Tensor) -> Tensor:
        """The map that the middle tap reads, (N, C, *map), for a grid without stride."""
        return _pad(x, self._margins(self.centred(1)), self.mode)

    def _margins(self, window: KernelWindow) -> list[tuple[int, int]]:
        """Padding in front and behind, per axis; negative where the window does not reach that far."""
        margins = []
        for axis, (size, step, offset) in enumerate(zip(window.size, window.step, window.offset, strict=True)):
            behind = self.size[axis] - 1 - offset - (size - 1) * step
            reach = self.dilation[axis]
            margins.append((self.before[axis] - offset * reach, self.after[axis] - behind * reach))
        return margins

    def _own_padding(self, window: KernelWindow) -> Axes | None:
        """Padding that a convolution applies by itself, or None where it cannot."""
        margins = self._margins(window)
        if self.mode == "zeros" and all(front == behind >= 0 for front, behind in margins):
            return tuple(front for front, _ in margins)
        return None if any(map(any, margins)) else (0,) * self.axes


def _paddings(convolution: Any) -> tuple[Axes, Axes]:
    """Padding in front and behind, per axis; "same" puts the odd one behind, as torch does."""
    if convolution.padding == "valid":
        return (0,) * len(convolution.kernel_size), (0,) * len(convolution.kernel_size)
    if convolution.padding != "same":
        return tuple(convolution.padding), tuple(convolution.padding)
    total = [d * (k - 1) for d, k in zip(convolution.dilation, convolution.kernel_size, strict=True)]
    return tuple(n // 2 for n in total), tuple(n - n // 2 for n in total)


def _pad(x: Tensor, margins: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """Pad by positive margins in the mode, then crop by negative ones: a circular map is read before it is cut."""
    amounts = [amount for pair in reversed(margins) for amount in pair]
    if not any(amounts):
        return x
    if mode == "zeros":
        return F.pad(x, amounts)
    padding, cropping = [max(amount, 0) for amount in amounts], [min(amount, 0) for amount in amounts]
    x = F.pad(x, padding, mode=mode) if any(padding) else x
    return F.pad(x, cropping) if any(cropping) else x
