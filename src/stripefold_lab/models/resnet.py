"""The residual networks for small images: three stages of widths 16, 32 and 64."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from stripefold.errors import ConfigError

STAGE_WIDTHS = (16, 32, 64)
BlockName = Literal["basic", "bottleneck"]


def convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias whose padding keeps the size at stride 1.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd side of the kernel.
        stride: Step of the kernel.
    """
    padding = kernel_size // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        in_channels: Channels of the input.
        width: Channels of both convolutions; the block gives ``width`` channels.
        stride: Stride of the first convolution.
        downsample: What brings the shortcut to the branch's shape; None leaves it alone.
    """

    expansion = 1
    convolutions = 2

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        return self.relu(branch + shortcut)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a widening 1x1 convolution beside a shortcut.

    Args:
        in_channels: Channels of the input.
        width: Channels of the first two convolutions; the block gives ``4 * width`` channels.
        stride: Stride of the 3x3 convolution.
        downsample: What brings the shortcut to the branch's shape; None leaves it alone.
    """

    expansion = 4
    convolutions = 3

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, 4 * width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        return self.relu(branch + shortcut)


BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """A residual network for images of 32x32 (CIFAR) to 96x96 (STL10) pixels.

    Args:
        depth: Number of weighted layers: 6n+2 with basic blocks, 9n+2 with bottlenecks.
        block: Which block the stages are made of.
        num_classes: Width of the last layer.
        in_channels: Channels of the images.
        image_size: Side of the images; only remembered (in ``input_size``), the network takes every size.

    Raises:
        ConfigError: If the block is unknown, the depth does not suit it, or a size is below one.

    >>> sum(p.numel() for p in ResNet(20).parameters())
    272474
    """

    input_size: tuple[int, int, int]

    def __init__(
        self,
        depth: int,
        *,
        block: BlockName = "basic",
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        _check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
        kind, blocks_per_stage = _plan(depth, block)
        self.input_size = (in_channels, image_size, image_size)
        self.num_classes = num_classes
        first, second, third = STAGE_WIDTHS
        self.conv1 = convolution(in_channels, first, 3)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(kind, first, first, blocks=blocks_per_stage, stride=1)
        self.layer2 = _stage(kind, first * kind.expansion, second, blocks=blocks_per_stage, stride=2)
        self.layer3 = _stage(kind, second * kind.expansion, third, blocks=blocks_per_stage, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third * kind.expansion, num_classes)
        self.apply(_initialise)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to the last stage's maps (N, 64 * expansion, H / 4, W / 4)."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        return self.fc(self.avgpool(self.forward_features(x)).flatten(1))


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; a network needs at least 1")


def _plan(depth: int, block: str) -> tuple[type[BasicBlock] | type[Bottleneck], int]:
    """The block class and how many of it each of the three stages holds."""
    if block not in BLOCKS:
        raise ConfigError(f"block is {block!r}; choose one of {', '.join(map(repr, BLOCKS))}")
    kind = BLOCKS[block]
    per_block = 3 * kind.convolutions
    count, rest = divmod(depth - 2, per_block)
    if rest or count < 1:
        nearest = per_block * max(1, round((depth - 2) / per_block)) + 2
        raise ConfigError(f"depth is {depth}; a {block} ResNet has depth {per_block}n+2: {nearest} is the nearest")
    return kind, count


def _stage(
    kind: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, *, blocks: int, stride: int
) -> nn.Sequential:
    out_channels = width * kind.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
    layers = [kind(in_channels, width, stride, downsample)]
    layers += [kind(out_channels, width, 1, None) for _ in range(blocks - 1)]
    return nn.Sequential(*layers)


def _initialise(module: nn.Module) -> None:
    """Convolutions start from N(0, sqrt(2 / (k * k * out))), BatchNorms from the identity (reference code)."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
