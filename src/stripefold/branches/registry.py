"""The kinds of block by name, and the branches of one for a given convolution."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stripefold.branches import acnet, dbb, dilated, doconv, large_kernel, mobileone, repvgg
from stripefold.branches.base import Branch, memory_format
from stripefold.branches.block import BranchBlock
from stripefold.branches.geometry import ConvGeometry
from stripefold.errors import BranchError
from stripefold.modules.globs import close_names


@dataclass(frozen=True, kw_only=True)
class BranchType:
    """One kind of block.

    Attributes:
        name: what users write.
        build: ``(grid, **options) -> branches``.
        refuse: ``(grid, **options) -> why not``, or None; raises BranchError for a bad option.
        branches: what it adds up, in words.
        source: the paper.
    """

    name: str
    build: Callable[..., dict[str, Branch]]
    why_unsupported: Callable[..., str | None]
    branches: str
    source: str

    @property
    def options(self) -> tuple[str, ...]:
        """The options it takes."""
        parameters = inspect.signature(self.build).parameters.values()
        return tuple(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)


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


def branch_names() -> tuple[str, ...]:
    """The kinds of branch blocks, in alphabetical order.

    >>> branch_names()
    ('acnet', 'dbb', 'dilated', 'doconv', 'large_kernel', 'mobileone', 'repvgg')
    """
    return tuple(sorted(_KINDS))


def describe() -> tuple[BranchType, ...]:
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
    raise BranchError(f"no branch block {name!r}; known are {', '.join(branch_names())}.{hint}")


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
    with weight.device:
        branches = kind.build(ConvGeometry.of(convolution), **options)
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
