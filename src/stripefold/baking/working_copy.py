"""A copy of the user's model to judge on: a metric may look at the model itself, so no hook may stand on that."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from stripefold.errors import BakeError
from stripefold.modules.borrowed import REMEDY, borrowed_module
from stripefold.modules.example import Example
from stripefold.modules.modules import NO_COPY


def working_copy(model: nn.Module) -> nn.Module:
    """A copy of the structure that reads the model's own parameters and has buffers of its own.

    Its parameters are other objects on the same memory: a copy that is moved to a device leaves the model where it is.

    Args:
        model: stays as it is.

    Raises:
        BakeError: it cannot be copied.
    """
    shared: dict[int, Tensor] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        for parameter in model.parameters()
        if type(parameter) is nn.Parameter
    }
    try:
        return copy.deepcopy(model, shared)
    except NO_COPY as error:
        raise BakeError(
            f"{type(model).__name__} cannot be copied ({error}), and baking judges, bakes and compares a copy"
        ) from error


def check_own(model: nn.Module, copied: nn.Module, example: Example) -> None:
    """See that a copy runs modules of its own.

    Args:
        model: the user's.
        copied: a copy of it, on the same device.
        example: an input.

    Raises:
        BakeError: it goes on with a module of the model.
    """
    name = borrowed_module(copied, model, example)
    if name is not None:
        raise BakeError(
            f"a copy of {type(model).__name__} still runs {name!r} of the model itself, so that nothing baked in it "
            f"would take effect: {REMEDY}"
        )
