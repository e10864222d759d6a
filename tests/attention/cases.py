"""The attentions under test, with every option that changes the arithmetic, and how to leave the start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stripefold.attention import ChannelAttention, build_attention

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "se": ("se", {}),
    "se-r2": ("se", {"reduction": 2}),
    "se-unbiased": ("se", {"reduction": 4, "bias": False}),
    "ie": ("ie", {}),
    "srm": ("srm", {}),
    "spa": ("spa", {"reduction": 4}),
    "spa-biased": ("spa", {"bias": True}),
    "eca": ("eca", {}),
    "eca-k5": ("eca", {"kernel_size": 5}),
    "cbam": ("cbam", {"reduction": 4}),
    "gct": ("gct", {}),
    "fca": ("fca", {"reduction": 4}),
    "ge": ("ge", {}),
    "ge-theta": ("ge", {"variant": "theta"}),
    "ge-theta+": ("ge", {"variant": "theta+", "reduction": 4}),
    "ese": ("ese", {}),
    "dia": ("dia", {}),
    "scale": ("scale", {}),
}
DYNAMIC_CASES = [case for case in CASES if case != "scale"]


def build(case: str, channels: int = 16, **options: Any) -> ChannelAttention:
    name, own = CASES[case]
    return build_attention(name, channels, **{**own, **options})


def static_scale(attention: ChannelAttention, psi: Tensor) -> Tensor:
    """v at the first site, whether or not the attention is a chained one."""
    result = attention.excite_static(psi)
    return result[0] if isinstance(result, tuple) else result


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Every parameter and statistic random, none of them zero or one as at the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.abs_().add_(0.5)
