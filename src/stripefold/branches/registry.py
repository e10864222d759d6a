"""The kinds of block by name, and the branches of one for a given convolution."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import torch
from torch import nn

from stripefold.branches import acnet, dbb, dilated, doconv, large_kernel, mobileone, repvgg
from stripefold.branches.base import memory_format
from stripefold.branches.block import BranchBlock
from stripefold.branches.geometry import ConvGeometry
from stripefold.branches.probe import Build, probe_branches
from stripefold.documents import shown
from stripefold.errors import BranchError
from stripefold.modules.name_globs import close_names

BuildType = TypeVar("BuildType", bound=Build)
Refuse = Callable[..., str | None]


@dataclass(frozen=True, kw_only=True)
class BranchType:
    """One kind of block.

    Attributes:
        name: what users write.
        build: ``(grid, **options) -> branches``.
        why_unsupported: ``(grid, **options) -> why not``, or None; raises BranchError for a bad option.
        branches: what it adds up, in words.
        source: the paper.
        registered: by a user; it is probed where it is used.
    """

    name: str
    build: Build
    why_unsupported: Refuse
    branches: str
    source: str
    registered: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The options it takes."""
        parameters = inspect.signature(self.build).parameters.values()
        return tuple(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)

    def refusal(self, convolution: nn.Module, options: Mapping[str, Any]) -> str | None:
        """Why a convolution cannot be this block, or None.

        Raises:
            BranchError: a bad value of an option, or ``why_unsupported`` gives neither a reason nor None.
        """
        reason: object = self.why_unsupported(ConvGeometry.of(convolution), **options)
        if reason is None or (isinstance(reason, str) and reason):
            return reason
        raise BranchError(
            f"refuse of block {self.name!r} returned {shown(reason)} for {convolution}; it must return a reason or None"
        )


_KINDS = {
    kind.name: kind
    for kind in (
        BranchType(
            name="acnet", build=acnet.build, why_unsupported=acnet.why_unsupported,
            branches="k x k, k x 1, 1 x k", source="Ding et al. 2019 (ACNet)",
        ),
        BranchType(
            name="dbb", build=dbb.build, why_unsupported=dbb.why_unsupported,
            branches="k x k, 1 x 1, 1 x 1 then k x k, 1 x 1 then average", source="Ding et al. 2021 (DBB)",
        ),
        BranchType(
            name="dilated", build=dilated.build, why_unsupported=dilated.why_unsupported,
            branches="k x k, several small dilated kernels", source="Ding et al. 2024 (UniRepLKNet)",
        ),
        BranchType(
            name="doconv", build=doconv.build, why_unsupported=doconv.why_unsupported,
            branches="k x k as the product of two factors", source="Cao et al. 2020 (DO-Conv)",
        ),
        BranchType(
            name="large_kernel", build=large_kernel.build, why_unsupported=large_kernel.why_unsupported,
            branches="k x k, a small kernel", source="Ding et al. 2022 (RepLKNet)",
        ),
        BranchType(
            name="mobileone", build=mobileone.build, why_unsupported=mobileone.why_unsupported,
            branches="several k x k, 1 x 1, identity", source="Vasu et al. 2023 (MobileOne)",
        ),
        BranchType(
            name="repvgg", build=repvgg.build, why_unsupported=repvgg.why_unsupported,
            branches="k x k, 1 x 1, identity", source="Ding et al. 2021 (RepVGG)",
        ),
    )
}  # fmt: skip


@overload
def register_branch(
    name: str, build: None = None, *, refuse: Refuse | None = None, branches: str = "", source: str = ""
) -> Callable[[BuildType], BuildType]: ...
@overload
def register_branch(
    name: str, build: BuildType, *, refuse: Refuse | None = None, branches: str = "", source: str = ""
) -> BuildType: ...
def register_branch(
    name: str, build: Build | None = None, *, refuse: Refuse | None = None, branches: str = "", source: str = ""
) -> Any:
    """Make a kind of branch block known under a name, as a decorator or by a call.

    The block is tried out on each convolution it is used for, on random float64 numbers: each branch must compute what
    its ``merged`` says, and the convolution's function must survive ``init="identity"``. A wrong one is refused there.

    Args:
        name: what users write in ``branch(model, name)``: an identifier.
        build: ``(grid, *, option=default ...) -> {name: branch}``: the branches whose sum stands for a convolution, the
            first one a ``PrimaryBranch``. ``stripefold.branches`` has ``ConvolutionBranch`` and ``IdentityBranch``, and
            ``Branch`` and ``PrimaryBranch`` for branches of your own. Without it a decorator is returned.
        refuse: ``(grid, *, the same options) -> why not``, or None for a grid that can have these branches.
        branches: what is added up, in words, for the table of ``stripefold branches``.
        source: the paper.

    Returns:
        The function ``build``, or the decorator.

    Raises:
        BranchError: for a bad name, a function that cannot be called so, or a name that is taken.

    Example::

        @register_branch("pair", branches="k x k twice")
        def pair(grid):
            return {"main": ConvolutionBranch(grid), "other": ConvolutionBranch(grid)}
    """
    if build is None:
        return lambda decorated: register_branch(name, decorated, refuse=refuse, branches=branches, source=source)
    _check_registration(name, build, refuse)
    _KINDS[name] = BranchType(
        name=name, build=build, why_unsupported=refuse or _never, branches=branches, source=source, registered=True
    )
    return build


def _never(grid: ConvGeometry, **options: Any) -> None:
    """No grid is refused."""


def _check_registration(name: object, build: object, refuse: object) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise BranchError(f"a block's name must be an identifier such as 'repvgg', got {shown(name)}")
    options = _options_of(name, "build", build)
    if refuse is not None and _options_of(name, "refuse", refuse) != options:
        raise BranchError(f"cannot register the block {name!r}: build and refuse must take the same options")
    known = _KINDS.get(name)
    if known is not None and known.build is not build:
        raise BranchError(f"cannot register the block {name!r}: the name is taken by {known.build.__module__}")


def _options_of(name: str, role: str, function: object) -> list[str]:
    """The options of a function that takes a grid and, by keyword, options that each have a default."""
    due = "(grid, *, option=default ...)"
    if not callable(function) or isinstance(function, type):
        raise BranchError(f"cannot register the block {name!r}: {role} is {shown(function)}; give a function {due}")
    parameters = [*inspect.signature(function).parameters.values()]
    takes_grid = bool(parameters) and parameters[0].kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    if not takes_grid or any(
        each.kind is not each.KEYWORD_ONLY or each.default is each.empty for each in parameters[1:]
    ):
        found = inspect.signature(function)
        raise BranchError(f"cannot register the block {name!r}: {role} takes {found}; it must take {due}")
    return sorted(each.name for each in parameters[1:])


def branch_names() -> tuple[str, ...]:
    """The kinds of branch blocks, in alphabetical order.

    >>> branch_names()
    ('acnet', 'dbb', 'dilated', 'doconv', 'large_kernel', 'mobileone', 'repvgg')
    """
    return tuple(sorted(_KINDS))


def branch_kinds() -> tuple[BranchType, ...]:
    """Every kind, in alphabetical order."""
    return tuple(_KINDS[name] for name in branch_names())


def kind_named(name: str) -> BranchType:
    """The kind of that name.

    Raises:
        BranchError: there is none.
    """
    if isinstance(name, str) and name in _KINDS:
        return _KINDS[name]
    hint = close_names(name, _KINDS) if isinstance(name, str) else ""
    raise BranchError(
        f"no branch block {name!r}; known are {', '.join(branch_names())}, and your own by "
        f"register_branch(name, build).{hint}"
    )


def check_options(kind: BranchType, options: Mapping[str, Any]) -> None:
    """Refuse options that a kind does not have.

    Raises:
        BranchError: no mapping, or an unknown option, with the nearest.
    """
    if not isinstance(options, Mapping):
        raise BranchError(f"options is {options!r}: give a mapping of names to values")
    for name in options:
        if name not in kind.options:
            known = ", ".join(kind.options) or "none"
            raise BranchError(
                f"block {kind.name!r} has no option {name!r}; its options are: {known}."
                f"{close_names(str(name), kind.options)}"
            )


def build_block(kind: BranchType, convolution: nn.Module, options: Mapping[str, Any], *, identity: bool) -> BranchBlock:
    """The block for one convolution, in its dtype, on its device, in its mode; the convolution stays as it is.

    Args:
        kind: one that does not refuse the convolution.
        convolution: what the block stands for; its weight itself goes into the block.
        options: of the kind.
        identity: compute in eval mode exactly what the convolution does, the other branches giving 0.
    """
    weight: Any = convolution.weight
    if kind.registered:
        probe_branches(kind.name, kind.build, convolution, options)
    with weight.device:
        branches = dict(kind.build(ConvGeometry.of(convolution), **options))
    for branch in branches.values():
        branch.to(weight.device, weight.dtype)
        if memory_format(weight) is not torch.contiguous_format:
            branch.to(memory_format=memory_format(weight))
    block = BranchBlock(convolution, kind.name, branches)
    block.lead.load_conv_(convolution)
    if identity:
        block.lead.init_identity_()
        for branch in list(branches.values())[1:]:
            branch.zero_init_()
    block.train(convolution.training)
    return block
