"""Convolutions of every kind, blocks in their place, and numbers that let an error be seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import stripefold as sf
from stripefold.branches.block import BranchBlock
from stripefold.branches.geometry import ConvGeometry
from stripefold.branches.registry import build_block, kind_named
from stripefold.modules.float64_weights import Float64Weights

KINDS = sf.branch_names()
# Options under which every kind stands for a 3x3 convolution.
SMALL: dict[str, dict[str, Any]] = {"large_kernel": {"small": 1}, "dilated": {"kernels": ((1, 1), (2, 2))}}
EXACT = 1e-10
PROPERTY = settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
_TYPES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def convolutions(draw: Any) -> nn.Module:
    """Any convolution of one, two or three axes, float64."""
    axes = draw(st.sampled_from([2, 2, 2, 1, 3]))
    groups = draw(st.integers(1, 3))
    per_axis = {"kernel_size": (1, 4), "stride": (1, 2), "dilation": (1, 2)}
    options: dict[str, Any] = {
        name: tuple(draw(st.integers(*ends)) for _ in range(axes)) for name, ends in per_axis.items()
    }
    number = draw(st.integers(0, 3))
    paddings: list[Any] = [number, tuple(draw(st.integers(0, 3)) for _ in range(axes)), "valid"]
    if set(options["stride"]) == {1}:
        paddings += ["same", "same"]
    return _TYPES[axes](
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        padding=draw(st.sampled_from(paddings)),
        padding_mode=draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])),
        groups=groups,
        bias=draw(st.booleans()),
        dtype=torch.float64,
        **options,
    )


def options_for(kind: str, convolution: nn.Module) -> Mapping[str, Any] | None:
    """Options under which a kind can stand for a convolution, or None."""
    tried: list[dict[str, Any]] = [{}, *([SMALL[kind]] if kind in SMALL else [])]
    if kind == "large_kernel":
        tried += [{"small": 2}]
    if kind == "dilated":
        tried += [{"kernels": ((2, 1),)}]
    found = kind_named(kind)
    return next((each for each in tried if found.why_unsupported(ConvGeometry.of(convolution), **each) is None), None)


def example_for(convolution: Any, batch: int = 4, seed: int = 0) -> Tensor:
    """The smallest map that the convolution and its padding mode accept, and a little more."""
    grid = ConvGeometry.of(convolution)
    size = [
        max(d * (k - 1) + 1, before + 1, after + 1) + 2 * s
        for k, d, s, before, after in zip(
            grid.size, grid.dilation, grid.stride, grid.before, grid.after, strict=True
        )
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, grid.inputs, *size, generator=generator, dtype=torch.float64)


def block_for(kind: str, convolution: nn.Module, options: Mapping[str, Any], *, identity: bool = False) -> BranchBlock:
    return build_block(kind_named(kind), convolution, options, identity=identity)


def randomised(block: BranchBlock, x: Tensor, eps: float = 3e-3) -> BranchBlock:
    """Every number random; statistics of one batch, then jittered; eps not torch's own. In eval mode."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += torch.randn_like(parameter)
        norms: list[Any] = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.eps, norm.momentum = eps, 1.0
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-1.0, 1.0)
        block.train()(x)
        for norm in norms:
            norm.momentum = 0.1
            norm.running_mean += 0.2 * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.4)
    return block.eval()


def folded_(block: BranchBlock) -> nn.Module:
    """The convolution that a block folds to, with its numbers."""
    weights = Float64Weights()
    layer = block.folded_(weights)
    weights.write_()
    return layer


def error(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value of ``b``; infinite where the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / b.abs().max())
