"""How many channel gates each module of timm holds, by its class: counted by reading timm's source, not by tracing.

Independent of stripefold on purpose: this is what ``discover`` is held against.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from torch import nn


def _always(module: nn.Module) -> int:
    return 1


GATES: dict[str, Callable[[nn.Module], int]] = {
    # Squeeze-and-excitation, in timm's layers and in private copies of model families.
    "timm.layers.squeeze_excite.SEModule": _always,
    "timm.layers.squeeze_excite.EffectiveSEModule": _always,
    "timm.layers.squeeze_excite.SqueezeExciteCl": _always,
    "timm.models._efficientnet_blocks.SqueezeExcite": _always,
    "timm.models.senet.SEModule": _always,
    "timm.models.hgnet.EseModule": _always,
    # One-dimensional convolutions over the channels.
    "timm.layers.eca.EcaModule": _always,
    "timm.layers.eca.CecaModule": _always,
    # The channel halves; the spatial halves are classes of their own.
    "timm.layers.cbam.ChannelAttn": _always,
    "timm.layers.cbam.LightChannelAttn": _always,
    # Gathering over the whole map is a channel gate, over an extent it is not.
    "timm.layers.gather_excite.GatherExcite": lambda module: int(module.extent == 0),
    # The multiplicative half; the additive one multiplies nothing.
    "timm.layers.global_context.GlobalContext": lambda module: int(module.mlp_scale is not None),
    # Weights of branches. Split attention with radix 1 has one branch and is a usual gate.
    "timm.layers.selective_kernel.SelectiveKernel": _always,
    "timm.layers.split_attn.SplitAttn": _always,
    # Per-channel factors that nobody calls attention: the norm of a channel over the norms of all, and a global query.
    "timm.layers.grn.GlobalResponseNorm": _always,
    "timm.models.swiftformer.EfficientAdditiveAttention": _always,
}


def expected_gates(model: nn.Module) -> Counter[str]:
    """Class -> number of channel gates in its modules."""
    counts: Counter[str] = Counter()
    for module in model.modules():
        name = class_name(module)
        if name in GATES and (gates := GATES[name](module)):
            counts[name] += gates
    return counts


def class_name(module: nn.Module) -> str:
    """Module path and name of a class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"
