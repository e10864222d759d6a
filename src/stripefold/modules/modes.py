"""Which modules are in training mode when the user runs the model for inference.

Mostly none. But a model's own ``train()`` may keep a part in training mode under ``eval()`` (a norm that adapts to each
batch, dropout that draws samples), and so may its user, by hand, after ``model.eval()``.
"""

from __future__ import annotations

from torch import nn

from stripefold.modules.preserve_state import preserve_state


def kept_in_training(model: nn.Module) -> frozenset[nn.Module]:
    """The modules that are in training mode even when the model is used for inference; nothing of it is changed.

    A model in evaluation mode is used as it stands, one in training mode after its own ``eval()``.
    """
    modules = list(model.modules())
    if not model.training:
        return frozenset(module for module in modules if module.training)
    if not any(_switches(module) for module in modules):
        return frozenset()
    with preserve_state(model) as copied:
        return frozenset(own for own, other in zip(modules, copied.modules(), strict=True) if other.training)


def _switches(module: nn.Module) -> bool:
    """Whether a module has a ``train`` or ``eval`` of its own."""
    cls = type(module)
    own = cls.train is not nn.Module.train or cls.eval is not nn.Module.eval
    return own or not {"train", "eval"}.isdisjoint(vars(module))
