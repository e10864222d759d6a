"""The model that is attached to: bare, and where it is copied, a copy that runs nothing of the original."""

from __future__ import annotations

import copy

from torch import nn

from stripefold.errors import AttachError
from stripefold.surgery.held import held_by_functions
from stripefold.surgery.modules import NO_COPY, is_sharded, unwrap_name, wrapped_inside


def copied(model: nn.Module) -> nn.Module:
    """A copy that runs its own modules.

    Raises:
        AttachError: ``check_root``; the model cannot be copied, or a closure in it goes on with the model itself.
    """
    check_root(model)
    try:
        made = copy.deepcopy(model)
    except NO_COPY as error:
        raise AttachError(
            f"{type(model).__name__} cannot be copied ({error}): use attach_, which works in place"
        ) from error
    own = set(model.modules())
    held = next((where for module, where in held_by_functions(made).items() if module in own), None)
    if held is not None:
        raise AttachError(
            f"a copy of {type(model).__name__} would still run modules of the model itself, without gates: {held!r} "
            "is a function that holds on to them. Make it a method (types.MethodType), or use attach_, which works in "
            "place"
        )
    return made


def check_root(model: nn.Module) -> None:
    """See that a model is a bare one.

    Raises:
        AttachError: it is no module, wrapped or sharded.
    """
    if not isinstance(model, nn.Module):
        raise AttachError(f"attach needs an nn.Module, got {type(model).__name__}")
    wrapper = unwrap_name(model) or ("FSDP2 (fully_shard)" if is_sharded(model) else None)
    if wrapper is not None:
        raise AttachError(f"the model is wrapped in {wrapper}: attach to the bare model first, then wrap it")
    inside = wrapped_inside(model, "DistributedDataParallel")
    if inside is not None:
        raise AttachError(
            f"{inside!r} is wrapped in DistributedDataParallel, which would not synchronise new parameters: attach to "
            "the bare model first, then wrap it"
        )
