"""``branch``: branch blocks in the place of convolutions. Everything is built and checked first, then swapped in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from torch import nn

from stripefold.branches.block import BranchBlock
from stripefold.branches.calibrate import calibrate_
from stripefold.branches.registry import build_block, check_options, kind_named
from stripefold.branches.select import select
from stripefold.errors import BranchError
from stripefold.folding.attached_steps import check_same_steps, steps_of
from stripefold.modules.all_or_nothing import AllOrNothing
from stripefold.modules.modules import forget_compiled, move_call_hooks, replace_modules
from stripefold.modules.root import check_bare, copy_of
from stripefold.modules.stand_in import is_plain
from stripefold.modules.thread_state import Interruptible
from stripefold.modules.where import Where

BranchInit = Literal["paper", "identity"]


class BranchStart(NamedTuple):
    """How the blocks begin: ``init``, ``data`` and ``example`` of ``branch_``."""

    init: BranchInit
    data: Any
    example: Any


def branch(
    model: nn.Module,
    kind: str,
    *,
    where: Where = "spatial",
    init: BranchInit = "paper",
    data: Any = None,
    example: Any = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Put branch blocks in the place of convolutions, in a copy of the model; the model given stays as it is.

    Takes the arguments of ``branch_`` and raises the same errors.
    """
    with Interruptible():
        _check_bare(model)
        copied = copy_of(model, "branch_", BranchError)
        return _branch(copied, kind, where, BranchStart(init, data, example), options or {})


def branch_(
    model: nn.Module,
    kind: str,
    *,
    where: Where = "spatial",
    init: BranchInit = "paper",
    data: Any = None,
    example: Any = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Put branch blocks in the place of convolutions, in place: each trains as several branches and folds to one.

    Build the optimiser afterwards: the branches are new parameters. ``attach`` comes afterwards too, and takes a block
    (its path) or a BatchNorm inside it.

    Args:
        model: any PyTorch model.
        kind: a name of ``branch_names()``.
        where: "spatial" (every convolution with more than one tap that the kind can stand for), a glob or a list of
            globs over dotted paths, or a predicate ``(name, module) -> bool``.
        init: "paper": the first branch keeps the convolution's own weights, the others start as torch starts a
            convolution. "identity": the model computes the same as before, so that pretrained weights survive: in eval
            mode always, in training mode only with ``data``.
        data: for "identity": batches of the training data (an iterable of tensors, of (images, labels) or of mappings
            of keyword arguments; or one tensor) on which the inner BatchNorms are measured, so that training starts
            from the same function. A few hundred images do.
        example: an input (tensor, tuple, mapping), or a list of such, one for each way the model is used: with the
            blocks in place the model must run the same layers on it. Inferred where the model declares its input.
        options: of the kind, such as ``{"copies": 2}``; ``stripefold branches`` lists them.

    Returns:
        The same model object.

    Raises:
        BranchError: nothing matched, a convolution cannot be a block, a bad option, or the data did not reach a
            convolution. The model is then unchanged.
    """
    with Interruptible():
        _check_bare(model)
        if is_plain(model, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            raise BranchError(
                "the model itself is the convolution and cannot be replaced in place: use model = branch(model, ...)"
            )
        return _branch(model, kind, where, BranchStart(init, data, example), options or {})


def _check_bare(model: nn.Module) -> None:
    check_bare(model, "branch", "put the blocks into the bare model", BranchError)


def _branch(model: nn.Module, kind: str, where: Where, start: BranchStart, options: Mapping[str, Any]) -> nn.Module:
    init, data = start.init, start.data
    _check_start(init, data)
    found = kind_named(kind)
    check_options(found, options)
    chosen = select(model, found, where, options, start.example)
    blocks = {
        name: build_block(found, convolution, options, identity=init == "identity")
        for name, convolution in chosen.convolutions.items()
    }
    if data is not None:
        calibrate_(model, chosen.convolutions, blocks, data)
    elif init == "identity" and any(block.has_norms for block in blocks.values()):
        warnings.warn(
            "init='identity' without data=: the model computes the same as before in eval mode, but not in training "
            "mode, where the new BatchNorms normalise by each batch. Give data= (some training batches) to begin "
            "training from the same function",
            stacklevel=3,
        )
    change = AllOrNothing(model)
    with change, change:
        return _swap_in(model, chosen.convolutions, blocks, start.example)


def _check_start(init: object, data: Any) -> None:
    if init not in get_args(BranchInit):
        raise BranchError(f"init={init!r}: expected 'paper' or 'identity'")
    if data is not None and init != "identity":
        raise BranchError("data= measures the BatchNorms of init='identity'; init='paper' takes none")


def _swap_in(
    model: nn.Module, convolutions: Mapping[str, nn.Module], blocks: Mapping[str, BranchBlock], example: Any
) -> nn.Module:
    """Put the blocks into the model; it must do the same steps as before."""
    before = steps_of(model, example, convolutions.values())
    forget_compiled(model)
    for name, convolution in convolutions.items():
        move_call_hooks(convolution, blocks[name])
    root = replace_modules(model, {convolutions[name]: block for name, block in blocks.items()})
    after = steps_of(root, example, []) if isinstance(before, list) else None
    check_same_steps(before, after, "its convolutions are blocks", BranchError)
    return root
