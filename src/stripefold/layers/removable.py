"""Parameters that a block of another library asks for before it uses them, so that it runs without them."""

from __future__ import annotations

from torch import nn

from stripefold.layers.rule import type_key

# Blocks that test their scales for None: taken away together, because one test may decide about all of them.
_REMOVABLE: dict[str, tuple[str, ...]] = {
    "timm.models.beit.Block": ("gamma_1", "gamma_2"),
    "timm.models.convnext.ConvNeXtBlock": ("gamma",),
    "timm.models.edgenext.ConvBlock": ("gamma",),
    "timm.models.edgenext.SplitTransposeBlock": ("gamma",),
    "timm.models.eva.EvaBlock": ("gamma_1", "gamma_2"),  # older versions ask the first about both
    "timm.models.fasternet.MLPBlock": ("layer_scale",),
    "timm.models.iformer.Residual": ("gamma",),
    "timm.models.inception_next.MetaNeXtBlock": ("gamma",),
    "timm.models.rdnet.DenseBlock": ("gamma",),
    "transformers.models.convnext.modeling_convnext.ConvNextLayer": ("layer_scale_parameter",),
}


def removable_parameters(block: nn.Module) -> tuple[str, ...]:
    """The attributes that may become None in a block, all of them together; by its exact type."""
    return _REMOVABLE.get(type_key(type(block)), ())
