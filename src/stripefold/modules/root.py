"""Unwraps the model to change; where it is copied, the copy runs no module of the original."""

from __future__ import annotations

import copy

from torch import nn

from stripefold.errors import StripefoldError
from stripefold.modules.closure_refs import held_by_functions
from stripefold.modules.modules import NO_COPY, is_sharded, uninitialized, unwrap_name, wrapped_inside


def copy_of(model: nn.Module, in_place: str, error: type[StripefoldError]) -> nn.Module:
    """A copy that runs its own modules.

    Args:
        model: What is copied.
        in_place: The function that needs no copy, for the message.
        error: What is raised.

    Raises:
        StripefoldError: Of the class ``error``: the model cannot be copied, or a closure in it goes on with the model
            itself.
    """
    kind = type(model).__name__
    try:
        made = copy.deepcopy(model)
    except NO_COPY as reason:
        raise error(f"{kind} cannot be copied ({reason}): use {in_place}, which works in place") from reason
    own = set(model.modules())
    held = next((where for module, where in held_by_functions(made).items() if module in own), None)
    if held is not None:
        raise error(
            f"a copy of {kind} would still run modules of the model itself, which stay as they are: {held!r} is a "
            f"function that holds on to them. Make it a method (types.MethodType), or use {in_place}, which works in "
            "place"
        )
    return made


def check_bare(model: nn.Module, name: str, first: str, error: type[StripefoldError]) -> None:
    """See that a model is a bare one.

    Args:
        model: What is to be changed.
        name: The function that was called, for the message.
        first: What is to be done to the bare model before it is wrapped, for the message.
        error: What is raised.

    Raises:
        StripefoldError: Of the class ``error``: it is no module, wrapped or sharded.
    """
    if not isinstance(model, nn.Module):
        raise error(f"{name} needs an nn.Module, got {type(model).__name__}")
    lazy = uninitialized(model)
    if lazy is not None:
        raise error(lazy)
    wrapper = unwrap_name(model) or ("FSDP2 (fully_shard)" if is_sharded(model) else None)
    if wrapper is not None:
        raise error(f"the model is wrapped in {wrapper}: {first} first, then wrap it")
    inside = wrapped_inside(model, "DistributedDataParallel")
    if inside is not None:
        raise error(
            f"{inside!r} is wrapped in DistributedDataParallel, which would not synchronise new parameters: {first} "
            "first, then wrap it"
        )
