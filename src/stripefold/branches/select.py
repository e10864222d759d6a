"""Which convolutions become blocks, and why each other one does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from stripefold.branches.block import BranchBlock
from stripefold.branches.registry import BranchType
from stripefold.errors import BranchError
from stripefold.folding.attached_steps import used_without_call
from stripefold.layers.refusal import altered, refusal_in
from stripefold.modules.closure_refs import held_by_functions, why_held
from stripefold.modules.foldable import Foldable
from stripefold.modules.modules import tensor_owners
from stripefold.modules.name_globs import close_names, matching, renamed
from stripefold.modules.stand_in import is_plain
from stripefold.modules.where import Where

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SPATIAL = "spatial"


@dataclass(frozen=True)
class Chosen:
    """The convolutions to replace, by path, and the reason for each that was looked at and left."""

    convolutions: dict[str, nn.Module] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def select(model: nn.Module, kind: BranchType, where: Where, options: Mapping[str, Any], example: Any = None) -> Chosen:
    """Resolve ``where`` on a model without changing it.

    Raises:
        BranchError: nothing can be replaced, a layer named by its full path cannot be, a glob without a match, a
            ``where`` of the wrong kind, a bad value of an option.
    """
    modules = _outside_blocks(model)
    names = _names(model, modules, where)
    owners, held = tensor_owners(model), held_by_functions(model)
    chosen, used = Chosen(), used_without_call(model, [modules[name] for name in names], example)
    for name in names:
        reason = _refusal(name, modules[name], kind, options, owners) or why_held(modules[name], held)
        if name in used:
            reason = reason or "its weight is used without calling it, and a block's branches run by a call only"
        if reason is None:
            chosen.convolutions[name] = modules[name]
        else:
            chosen.refused[name] = reason
    _check(chosen, kind, where)
    return chosen


def _outside_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """First dotted path -> module, without what is inside blocks or sites."""
    modules: dict[str, nn.Module] = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(inside)):
            continue
        modules[name] = module
        if isinstance(module, Foldable):
            inside.append(f"{name}." if name else "")
    return modules


def _names(model: nn.Module, modules: dict[str, nn.Module], where: Where) -> list[str]:
    if callable(where) and not isinstance(where, nn.Module):
        return [name for name, module in modules.items() if where(name, module)]
    if where == _SPATIAL:
        return [name for name, module in modules.items() if _is_spatial(module)]
    globs = [where] if isinstance(where, str) else where
    if not isinstance(globs, Sequence) or not globs or not all(isinstance(glob, str) for glob in globs):
        raise BranchError(
            f"where={where!r}: give 'spatial', a glob, a list of globs, or a predicate (name, module) -> bool"
        )
    found: set[str] = set()
    for glob in globs:
        matches = matching(modules, glob)
        if not matches:
            hint = renamed(model, glob) or close_names(glob, [_SPATIAL, *modules])
            raise BranchError(
                f"where={glob!r} matches no module.{hint} Give 'spatial' or a glob over dotted paths such as "
                "'layer4.*.conv2'"
            )
        found.update(matches)
    return [name for name in modules if name in found]


def _is_spatial(module: nn.Module) -> bool:
    """A convolution of any library with more than one tap, blocks and sites apart."""
    return is_plain(module, _CONVOLUTIONS) and any(size > 1 for size in module.kernel_size)


def _refusal(
    name: str, module: nn.Module, kind: BranchType, options: Mapping[str, Any], owners: Mapping[int, list[str]]
) -> str | None:
    """Why this module cannot be replaced, or None."""
    if isinstance(module, BranchBlock):
        return f"it is a block already, of kind {module.kind!r}"
    if isinstance(module, Foldable):
        return "it carries a gate: put the blocks in first, then attach"
    reason = altered(module) or _type_refusal(module) or refusal_in(name, module, owners)
    return reason or kind.refusal(module, options)


def _type_refusal(module: nn.Module) -> str | None:
    if type(module) in _CONVOLUTIONS:
        return None
    name = type(module).__name__
    if isinstance(module, _CONVOLUTIONS):
        return f"{name} (exact type) does more than a convolution with its settings: a block would not do that"
    if "ConvTranspose" in name:
        return f"{name} is a transposed convolution: no block has a form for it"
    return f"{name} is no convolution"


def _check(chosen: Chosen, kind: BranchType, where: Where) -> None:
    exact = {where} if isinstance(where, str) else set() if callable(where) else set(where)
    for name, reason in chosen.refused.items():
        if name in exact:
            raise BranchError(f"cannot put a {kind.name} block on {name!r}: {reason}")
    if chosen.convolutions:
        return
    asked = "the predicate given as where" if callable(where) else f"where={where!r}"
    if chosen.refused:
        lines = [f"  {name or '(root)'}: {reason}" for name, reason in chosen.refused.items()]
        listed = "\n".join([*lines[:5], *(["  ..."] if len(lines) > 5 else [])])
        raise BranchError(f"{asked} selects only layers that cannot become {kind.name} blocks:\n{listed}")
    raise BranchError(f"{asked} selects no convolution of this model")
