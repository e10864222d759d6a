"""Layers under adapters of PEFT that are merged into them, or switched off.

A merged adapter will be subtracted from the weights again, one that is switched off will be added to the output:
whoever changes the layer meanwhile changes what comes out then. By the names of PEFT's classes, which is not imported.
"""

from __future__ import annotations

from torch import nn

_WRAPPERS = frozenset({"BaseTunerLayer", "AuxiliaryTrainingWrapper", "ModulesToSaveWrapper"})
_INSIDE = ("base_layer", "original_module")


def under_adapters(model: nn.Module) -> dict[nn.Module, str]:
    """Module -> why nothing may be folded into it, for everything inside layers whose adapters are merged or off."""
    found: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        if not _WRAPPERS.isdisjoint(cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("peft.")):
            reason = _reason(name, module)
            for part in _inside(module) if reason is not None else ():
                found.setdefault(part, reason)  # type: ignore[arg-type]
    return found


def _inside(wrapper: nn.Module) -> list[nn.Module]:
    layers = [wrapper._modules.get(key) for key in _INSIDE]
    return [part for layer in layers if layer is not None for part in layer.modules()]


def _reason(name: str, wrapper: nn.Module) -> str | None:
    merged = list(getattr(wrapper, "merged_adapters", ()) or ())
    if merged:
        return (
            f"the adapter {merged[0]!r} of {name!r} is merged into it, and would be taken out again without what is "
            "folded: call unmerge_adapter() first, or merge_and_unload() for good"
        )
    if getattr(wrapper, "disable_adapters", False):
        return (
            f"the adapters of {name!r} are switched off, and would not have what is folded once they are on: enable "
            "them first, or take them away with unload()"
        )
    return None
