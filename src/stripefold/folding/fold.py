"""``fold``: merge what stripefold attached into the plain layers. One way, on a copy, idempotent."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal, overload

from torch import nn

from stripefold.errors import FoldError
from stripefold.folding.biases import BiasTarget, plan_biases
from stripefold.folding.fuse import fuse_
from stripefold.folding.inside_out import fold_all_
from stripefold.folding.report import FoldPlan, FoldReport
from stripefold.folding.tolerance import NothingComparedError
from stripefold.folding.verify import verify
from stripefold.graph.paths_not_taken import DID_NOT_RUN, unseen_in_words
from stripefold.layers.accepts import STAYS_IN_TRAINING, normalises
from stripefold.modules.all_or_nothing import AllOrNothing
from stripefold.modules.example import Example, infer_example
from stripefold.modules.float64_weights import Float64Weights
from stripefold.modules.foldable import Foldable, FoldNote
from stripefold.modules.leaked_modules import REMEDY, leaked_module
from stripefold.modules.modes import kept_in_training
from stripefold.modules.modules import (
    NO_COPY,
    forget_compiled,
    is_sharded,
    tensor_owners,
    uninitialized,
    unwrap_name,
    unwrapped,
)
from stripefold.modules.peft_layers import under_adapters
from stripefold.modules.thread_state import Interruptible

CheckMode = Literal["auto"] | bool
_NOT_CHECKED = "not checked"


@overload
def fold(
    model: nn.Module,
    *,
    fuse: bool = ...,
    example: Example | None = ...,
    check: CheckMode = ...,
    report: Literal[False] = ...,
) -> nn.Module: ...
@overload
def fold(
    model: nn.Module, *, fuse: bool = ..., example: Example | None = ..., check: CheckMode = ..., report: Literal[True]
) -> tuple[nn.Module, FoldReport]: ...
def fold(
    model: nn.Module,
    *,
    fuse: bool = False,
    example: Example | None = None,
    check: CheckMode = "auto",
    report: bool = False,
) -> nn.Module | tuple[nn.Module, FoldReport]:
    """Fold a copy of the model; the training model stays as it is and shares no storage with the result.

    Without ``fuse`` the result has the backbone's own class, module tree, keys, shapes, dtypes, flags and hooks, and
    can be used where stripefold is not installed.

    Args:
        model: an attached model (folding a plain one gives a plain copy). DDP and ``torch.compile`` wrappers come off.
        fuse: also merge what the model itself carries: blocks that can re-parameterize themselves, static per-channel
            scales (LayerScale) and additions, every BatchNorm that the trace shows directly behind a convolution or
            linear layer, or in front of one without zero padding; and fold gates of positions into poolings. Keys
            change: such a file is loaded into ``fold(create(), fuse=True)``.
        example: input for the check (and for the trace behind ``fuse``): tensor, tuple or dict; inferred where the
            model declares its input.
        check: compare the folded model with the training model. "auto" checks when there is an example and warns when
            there is none, True demands one, False skips.
        report: also return a ``FoldReport``.

    Raises:
        FoldError: a gate is not finite, a product overflows, a layer was tied or parametrized since, a sharded model,
            ``check=True`` or ``fuse`` without example, or a gate before a pooling, which folds with ``fuse=True`` only.
        TraceError: ``fuse=True``, and the model does not run on the example.
        VerifyError: the check found a difference.

    Source: ASR, Huang et al. 2024, section 3 (inference).
    """
    with Interruptible():
        model = _unwrapped(model)
        example = _example(model, example, check, fuse)
        plain, made = _fold_in_place(_copied(model), fuse, example)
        if check is not False and example is not None:
            _check_own(model, plain, example)
            made = replace(made, verification=_verified(model, plain, example, check))
        _announce(made)
        return (plain, made) if report else plain


@overload
def fold_(
    model: nn.Module,
    *,
    fuse: bool = ...,
    example: Example | None = ...,
    check: CheckMode = ...,
    report: Literal[False] = ...,
) -> nn.Module: ...
@overload
def fold_(
    model: nn.Module, *, fuse: bool = ..., example: Example | None = ..., check: CheckMode = ..., report: Literal[True]
) -> tuple[nn.Module, FoldReport]: ...
def fold_(
    model: nn.Module,
    *,
    fuse: bool = False,
    example: Example | None = None,
    check: CheckMode = "auto",
    report: bool = False,
) -> nn.Module | tuple[nn.Module, FoldReport]:
    """Fold in place, for models too large to copy.

    Everything is validated first, so that a refusal leaves the model as it was. With a check, a copy is folded and
    compared before the model itself is touched; ``check=False`` needs no copy. What is overwritten is kept until the
    end, so that an error or an interrupt on the way is undone: that is the extra memory, and no more.

    Takes the arguments of ``fold`` and raises the same errors.
    """
    with Interruptible():
        model = _unwrapped(model)
        example = _example(model, example, check, fuse)
        verification = _NOT_CHECKED
        if check is not False and example is not None:
            verification = _verified(model, _fold_in_place(_copied(model), fuse, example)[0], example, check)
        change = AllOrNothing(model)
        with change, change:
            plain, made = _fold_in_place(model, fuse, example)
            made = replace(made, verification=verification)
            _announce(made)  # a warning may be an error, which is undone too
            return (plain, made) if report else plain


def plan(model: nn.Module, *, fuse: bool = False, example: Example | None = None) -> FoldPlan:
    """Say what ``fold`` would merge where, and what would stay and why, without changing anything.

    It prints as a table. ``fuse=True`` plans on a copy of the model; the plan is the one that ``fold`` carries out.

    Args:
        model: an attached model, or a plain one.
        fuse: as for ``fold``.
        example: input for the trace; inferred where the model declares one.

    Raises:
        FoldError: folding is impossible, as for ``fold``.
        TraceError: the model does not run on the example.
    """
    with Interruptible():
        model = _unwrapped(model)
        example = _example(model, example, False, fuse)
        if fuse:
            return _fold_in_place(_copied(model), True, example)[1].as_plan()
        gates = _plan_gates(model, False, example)
        return FoldPlan(notes=gates.notes, unmoved=gates.unmoved, unseen=gates.unseen)


def _verified(model: nn.Module, plain: nn.Module, example: Example, check: CheckMode) -> str:
    try:
        report = verify(model, plain, example)
        if report.fast_path is not None:
            warnings.warn(f"the folded model is right, but {report.fast_path}", stacklevel=3)
        return str(report)
    except NothingComparedError as error:
        if check is True:
            raise
        warnings.warn(f"folding without a check: {error}", stacklevel=3)
        return _NOT_CHECKED


def _check_own(model: nn.Module, plain: nn.Module, example: Example) -> None:
    name = leaked_module(plain, model, example)
    if name is not None:
        raise FoldError(
            f"the folded copy of {type(model).__name__} still runs {name!r} of the training model, gates and all: "
            f"{REMEDY}. Or fold in place: fold_(model, check=False)"
        )


def _unwrapped(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise FoldError(f"fold needs an nn.Module, got {type(model).__name__}")
    model = unwrapped(model)
    lazy = uninitialized(model)
    if lazy is not None:
        raise FoldError(lazy)
    wrapper = unwrap_name(model)
    if wrapper is not None or is_sharded(model):
        raise FoldError(
            f"cannot fold a sharded model ({wrapper or 'FSDP2'}): gather it first. Take the full state dict "
            "(torch.distributed.checkpoint.state_dict.get_model_state_dict with "
            "StateDictOptions(full_state_dict=True, cpu_offload=True)), load it into an attached model that is not "
            "sharded, and fold that"
        )
    return model


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except NO_COPY as error:
        raise FoldError(
            f"{type(model).__name__} cannot be copied ({error}): use fold_(model, check=False), which works in place"
        ) from error


def _example(model: nn.Module, example: Example | None, check: CheckMode, fuse: bool) -> Example | None:
    if check not in ("auto", True, False):
        raise FoldError(f"check={check!r}: expected 'auto', True or False")
    if example is None and (fuse or check is not False):
        example = infer_example(model)
    if example is None and (fuse or check is True):
        needs = "fuse=True" if fuse else "check=True"
        raise FoldError(
            f"{needs} needs an example input and {type(model).__name__} does not declare one: give example= "
            "(tensor, tuple or dict of keyword arguments)"
        )
    if example is None and check == "auto":
        warnings.warn(
            "folding without a check: the model does not declare its input. Give example=, or check=False to say that "
            "this is meant",
            stacklevel=3,
        )
    return example


@dataclass(frozen=True)
class _Gates:
    """What folding does to everything of ours in a model; every check is made.

    Attributes:
        found: dotted path -> module of ours, outer ones first.
        notes: one row for each.
        biases: where the biases go that folding creates.
        unseen: what did not run on the example.
    """

    found: dict[str, Foldable]
    notes: tuple[FoldNote, ...]
    biases: dict[str, BiasTarget]
    unseen: tuple[str, ...]

    @property
    def unmoved(self) -> tuple[str, ...]:
        """Those that never moved from their start."""
        return tuple(name for name, module in self.found.items() if module.is_at_start())


def _plan_gates(model: nn.Module, fuse: bool, example: Example | None) -> _Gates:
    """Look at everything of ours; the model is only read.

    Raises:
        FoldError: folding is impossible.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, Foldable)}
    if not fuse:
        _check_keys(found)
    owners = tensor_owners(model) if found else {}
    notes = [note for name, module in found.items() for note in module.check_fold(name, owners)]
    _check_modes(found, kept_in_training(model))
    _check_adapters(model, found)
    biases, unseen = plan_biases(model, found, notes, example, fuse=fuse)
    if not fuse:
        notes = [_with_bias(note, biases[note.name]) if note.name in biases else note for note in notes]
    return _Gates(found, tuple(notes), biases, unseen)


def _with_bias(note: FoldNote, target: BiasTarget) -> FoldNote:
    return replace(note, why=f"{note.why}; {target}", unseen=target.unseen)


def _fold_in_place(model: nn.Module, fuse: bool, example: Example | None) -> tuple[nn.Module, FoldReport]:
    gates = _plan_gates(model, fuse, example)
    weights = Float64Weights(keep=fuse or any(module.elsewhere for module in gates.found.values()))
    unmoved = gates.unmoved
    if gates.found:
        forget_compiled(model)
    plain, new_keys = fold_all_(model, gates.found, gates.biases, weights)
    fuse_notes: list[FoldNote] = []
    unseen = gates.unseen
    if fuse:
        plain, fuse_notes, unseen = fuse_(plain, example, weights)
    rows = (*gates.notes, *fuse_notes)
    return plain, FoldReport(
        notes=rows,
        unmoved=unmoved,
        fused=fuse,
        verification=_NOT_CHECKED,
        new_keys=() if fuse else new_keys,
        unseen=unseen if rows else (),
    )


def _check_keys(found: Mapping[str, Foldable]) -> None:
    """Without ``fuse`` the keys are the backbone's: what cannot keep them is refused, never done in silence."""
    for name, module in found.items():
        if module.new_keys is not None:
            raise FoldError(
                f"cannot fold the gate on {name!r} and keep the backbone's keys: {module.new_keys}. Say "
                "fold(model, fuse=True), which changes keys, or drop the gates with detach(model)"
            )


def _check_modes(found: Mapping[str, Foldable], kept: Collection[nn.Module]) -> None:
    """A norm inside a branch block whose statistics are each batch's own is no part of one convolution."""
    for name, module in found.items():
        # A gate scales such a norm as any other; a block that trains as a whole is one in the middle of training.
        if "base" in module._modules or module in kept:
            continue
        inside = (f"{name}.{path}" if name else path for path, part in module.named_modules() if normalises(part, kept))
        norm = next(inside, None)
        if norm is not None:
            raise FoldError(
                f"cannot fold the block on {name!r}: {norm!r} {STAYS_IN_TRAINING}. Put it into eval mode, if that is "
                "how the model is used"
            )


def _check_adapters(model: nn.Module, found: Mapping[str, Foldable]) -> None:
    adapted = under_adapters(model) if found else {}
    for name, module in found.items():
        if module in adapted:
            raise FoldError(f"cannot fold what is on {name!r}: {adapted[module]}")


def _announce(report: FoldReport) -> None:
    if report.unseen and any(note.unseen for note in report.notes):
        warnings.warn(
            f"{unseen_in_words(report.unseen)} {DID_NOT_RUN}: what such a layer may meet was left as it "
            "is. To merge there as well, give example=[...], a list with an input for each way in which the model is "
            "used",
            stacklevel=3,
        )
    if report.new_keys:
        listed = ", ".join(report.new_keys[:5]) + (" ..." if len(report.new_keys) > 5 else "")
        warnings.warn(
            f"{len(report.new_keys)} folded layers have a bias that the stock ones do not have, because no "
            f"layer behind them could take it: {listed}. Such weights load into a model built with those biases; "
            "fold(..., report=True) says why for each",
            stacklevel=3,
        )
