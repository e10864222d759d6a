"""Copies of the user's model to work on: a metric may look at the model itself, so no hook may stand on that."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from stripefold.errors import BakeError
from stripefold.modules.example import Example
from stripefold.modules.leaked_modules import REMEDY, leaked_module
from stripefold.modules.modules import NO_COPY
from stripefold.modules.structural_copy import structural_copy


def working_copy(model: nn.Module) -> nn.Module:
    """A copy that reads the model's own parameters, by other objects, and shares nothing else with it.

    The structural copy has hooks of its own, and the deep one of that a graph of its own where the model is traced.

    Args:
        model: only read.

    Raises:
        BakeError: it cannot be copied.
    """
    return _copy_on_same_parameters(structural_copy(model))


def check_copies(model: nn.Module, example: Example) -> None:
    """See that deep copies of a model run modules of their own: what is returned is one.

    Args:
        model: the user's; only read.
        example: an input.

    Raises:
        BakeError: a copy goes on with a module of the model.
    """
    name = leaked_module(_copy_on_same_parameters(model), model, example)
    if name is not None:
        raise BakeError(
            f"a copy of {type(model).__name__} still runs {name!r} of the model itself, so that nothing baked in it "
            f"would take effect: {REMEDY}"
        )


def _copy_on_same_parameters(model: nn.Module) -> nn.Module:
    return deep_copy(model, {id(parameter): parameter for parameter in model.parameters()})


def deep_copy(model: nn.Module, shared: dict[int, Tensor] | None = None) -> nn.Module:
    """A deep copy, with the same hooks.

    Args:
        model: only read.
        shared: id -> tensor, of those that are not copied.

    Raises:
        BakeError: it cannot be copied.
    """
    try:
        return copy.deepcopy(model, shared)
    except NO_COPY as error:
        raise BakeError(
            f"{type(model).__name__} cannot be copied ({error}), and baking judges, bakes and compares a copy"
        ) from error
