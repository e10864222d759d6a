"""Spatial attention: the spatial half of CBAM, one weight for each position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripefold.attention.gates import GATES, GateName, checked_gate
from stripefold.attention.pooling import PLANE_AXES
from stripefold.attention.positional import PositionAttention
from stripefold.attention.registry import register_attention
from stripefold.errors import AttachError


class SpatialHalf(nn.Module):
    """y = gate(norm(conv(max and mean over the channels))) (.) x, one weight for each position.

    Args:
        axis: the channel axis of feature maps, 1 or -1.
        owner: the attention it is a part of, for the message.
        kernel_size: of the convolution, odd.
        gate: the last function.
    """

    def __init__(self, axis: int, owner: str = "cbam", *, kernel_size: int = 7, gate: str = "sigmoid") -> None:
        super().__init__()
        self.axis, self.owner, self.gate = axis, owner, gate
        self.conv = nn.Conv2d(2, 1, kernel_size=kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def summary(self, x: Tensor) -> Tensor:
        """Maximum and mean over the channels: (N, C, H, W) or (N, H, W, C), by ``axis``, -> (N, 2, H, W).

        Raises:
            AttachError: for maps that are not two-dimensional.
        """
        if x.ndim != PLANE_AXES:
            raise AttachError(
                f"attention {self.owner!r}: the spatial half needs two-dimensional maps, got a tensor of shape "
                f"{tuple(x.shape)}. {'Leave spatial=True out' if self.owner == 'cbam' else 'Use another attention'}"
            )
        return torch.stack((x.amax(self.axis), x.mean(self.axis)), dim=1)

    def weights(self, summary: Tensor) -> Tensor:
        """(N, 2, H, W) -> (N, H, W); the normalisation uses the batch while training."""
        return GATES[self.gate](self.norm(self.conv(summary))).squeeze(1)

    def static_weights(self, summary: Tensor) -> Tensor:
        """(2, H, W) -> (H, W) in the dtype of ``summary``, with the affine part of the normalisation only."""
        dtype, norm = summary.dtype, self.norm
        mixed = F.conv2d(summary.unsqueeze(0), self.conv.weight.to(dtype), padding=self.conv.padding)
        return GATES[self.gate](mixed * norm.weight.to(dtype) + norm.bias.to(dtype)).flatten(0, 1).squeeze(0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) or (N, H, W, C), by ``axis``, to the same shape."""
        return x * self.weights(self.summary(x)).unsqueeze(self.axis)


@register_attention("spatial")
class SpatialAttention(PositionAttention):
    """s = gate(norm(conv_k(max, mean))): the spatial half of CBAM, alone.

    psi is the learned summary, (2, H, W) for a grid of H x W (a row of positions is a grid of 1 x L). It has no batch:
    the static form keeps the affine part of norm.

    Args:
        channels: C of the map.
        axis: the channel axis of feature maps, 1 or -1.
        grid: (H, W) or (L,), for the static form; ``attach`` finds it.
        kernel_size: k, odd.
        gate: the last function.

    Raises:
        AttachError: a kernel size that is no positive odd integer, or a grid of three axes.

    Source: Woo et al., *CBAM: Convolutional Block Attention Module*, ECCV 2018, equation 3.
    """

    squeezes = "max, mean over the channels -> (2, H, W)"
    excites = "gate(norm(conv_k(d)))"
    source = "Woo 2018, arXiv 1807.06521"

    def __init__(
        self,
        channels: int,
        *,
        axis: int = 1,
        grid: tuple[int, ...] | None = None,
        kernel_size: int = 7,
        gate: GateName = "sigmoid",
    ) -> None:
        super().__init__(channels, axis=axis, grid=grid)
        if type(kernel_size) is not int or kernel_size < 1 or kernel_size % 2 == 0:
            raise AttachError(f"attention 'spatial': kernel_size must be a positive odd integer, got {kernel_size!r}")
        if grid is not None and len(self.grid) > 2:
            raise AttachError(
                f"attention 'spatial': its convolution takes maps of H x W, not {self.grid}: use 'position'"
            )
        self.weighting = SpatialHalf(axis, "spatial", kernel_size=kernel_size, gate=checked_gate("spatial", gate))

    @property
    def descriptor_shape(self) -> tuple[int, ...]:
        """(2, H, W): maximum and mean."""
        return (2, *((1,) * (2 - len(self.grid))), *self.grid)

    def squeeze(self, x: Tensor) -> Tensor:
        """Maximum and mean over the channels: (N, C, H, W) -> (N, 2, H, W)."""
        return self.weighting.summary(x)

    def excite(self, descriptor: Tensor) -> Tensor:
        """(N, 2, H, W) -> (N, H, W)."""
        return self.weighting.weights(descriptor)

    def excite_static(self, psi: Tensor) -> Tensor:
        """(2, H, W) -> (H W,), with the affine part of norm only."""
        return self.weighting.static_weights(psi).flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Scale the positions of each sample; the shape of ``x`` stays."""
        forwarded: Tensor = self.weighting(x)
        return forwarded
