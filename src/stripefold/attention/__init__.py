"""The zoo of channel attentions: one file each, every one ``squeeze`` (a map to a descriptor) then ``excite`` (to v).

ASR learns the descriptor instead of computing it (*Attention-alike Structural Re-parameterization*, arXiv 2304.06345),
so each attention here works in two forms: *dynamic*, a module on feature maps, and *static*, v from a learned psi.
A user's own attention joins with :func:`register_attention`.
"""

from __future__ import annotations

from stripefold.attention.base import ChannelAttention
from stripefold.attention.ie import InstanceEnhancement
from stripefold.attention.registry import (
    AttentionRow,
    attention_class,
    attention_names,
    attention_options,
    build_attention,
    describe,
    register_attention,
)
from stripefold.attention.se import SqueezeExcitation

__all__ = [
    "AttentionRow",
    "ChannelAttention",
    "InstanceEnhancement",
    "SqueezeExcitation",
    "attention_class",
    "attention_names",
    "attention_options",
    "build_attention",
    "describe",
    "register_attention",
]
