"""The zoo of channel attentions: one file each, every one ``squeeze`` (a map to a descriptor) then ``excite`` (to v).

ASR learns the descriptor instead of computing it (*Attention-alike Structural Re-parameterization*, arXiv 2304.06345),
so each attention here works in two forms: *dynamic*, a module on feature maps, and *static*, v from a learned psi.
A user's own attention joins with :func:`register_attention`.
"""

from __future__ import annotations

from stripefold.attention.base import ChannelAttention
from stripefold.attention.cbam import ConvolutionalBlockAttention
from stripefold.attention.dia import DenseImplicitAttention
from stripefold.attention.eca import EfficientChannelAttention
from stripefold.attention.ese import EffectiveSqueezeExcitation
from stripefold.attention.fca import FrequencyChannelAttention
from stripefold.attention.gc import GlobalContext
from stripefold.attention.gct import GatedChannelTransformation
from stripefold.attention.ge import GatherExcite
from stripefold.attention.ie import InstanceEnhancement
from stripefold.attention.position import Position
from stripefold.attention.positional import PositionAttention
from stripefold.attention.registry import (
    AttentionRow,
    attention_class,
    attention_names,
    attention_options,
    build_attention,
    describe,
    register_attention,
)
from stripefold.attention.scale import Scale
from stripefold.attention.se import SqueezeExcitation
from stripefold.attention.shift import Shift
from stripefold.attention.spa import SpatialPyramidAttention
from stripefold.attention.spatial import SpatialAttention
from stripefold.attention.srm import StyleRecalibration

__all__ = [
    "AttentionRow",
    "ChannelAttention",
    "ConvolutionalBlockAttention",
    "DenseImplicitAttention",
    "EffectiveSqueezeExcitation",
    "EfficientChannelAttention",
    "FrequencyChannelAttention",
    "GatedChannelTransformation",
    "GatherExcite",
    "GlobalContext",
    "InstanceEnhancement",
    "Position",
    "PositionAttention",
    "Scale",
    "Shift",
    "SpatialAttention",
    "SpatialPyramidAttention",
    "SqueezeExcitation",
    "StyleRecalibration",
    "attention_class",
    "attention_names",
    "attention_options",
    "build_attention",
    "describe",
    "register_attention",
]
