"""Which layers count as affine in the tests of the trace, told by type alone, so that they need no rules."""

from __future__ import annotations

from torch import nn

_TORCH = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.LayerNorm,
    nn.GroupNorm,
)
_NAMES = (
    *("LayerScale", "LayerScale2d", "Affine", "RMSNorm", "RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d"),
    *("LlamaRMSNorm", "FrozenBatchNorm2d", "Conv1D", "LayerNormFp32", "T5LayerNorm"),
)


def is_affine(module: nn.Module) -> bool:
    """Convolutions, linear layers and normalisations that have parameters."""
    named = isinstance(module, _TORCH) or type(module).__name__ in _NAMES
    return named and any(True for _ in module.parameters())
