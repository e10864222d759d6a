"""The mode in which every module is when its user runs the model for inference.

Mostly that is evaluation mode. But a model's own ``train()`` may keep a part in training mode under ``eval()`` (a norm
that adapts to each batch, dropout that draws samples), and so may its user, by hand, after ``model.eval()``.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def modes_in_use(model: nn.Module) -> dict[nn.Module, bool]:
    """Module -> whether it is in training mode when the model is used; nothing of the model is changed.

    A model in evaluation mode is used as it stands. One in training mode is used after ``model.eval()``, of which its
    own ``train()`` and ``eval()`` may make what they like.
    """
    modules = list(model.modules())
    if not model.training:
        return {module: module.training for module in modules}
    if not any(_switches(module) for module in modules):
        return dict.fromkeys(modules, False)
    try:
        switched = copy.deepcopy(model, _without_numbers(model)).eval()
    except Exception:  # a user's code of any kind, on a copy without numbers
        return dict.fromkeys(modules, False)
    return {module: own.training for module, own in zip(modules, switched.modules(), strict=True)}


def kept_in_training(model: nn.Module) -> frozenset[nn.Module]:
    """The modules that are in training mode even when the model is used for inference."""
    return frozenset(module for module, training in modes_in_use(model).items() if training)


def _switches(module: nn.Module) -> bool:
    """Whether a module has a ``train`` or ``eval`` of its own."""
    cls = type(module)
    own = cls.train is not nn.Module.train or cls.eval is not nn.Module.eval
    return own or not {"train", "eval"}.isdisjoint(vars(module))


def _without_numbers(model: nn.Module) -> dict[int, Any]:
    """A memo for ``deepcopy`` by which the copy has weightless tensors."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty: torch.Tensor = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, tensor.requires_grad)
        memo[id(tensor)] = empty
    return memo
