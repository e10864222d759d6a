"""Branch blocks: several convolutions while a network trains, one when it runs.

A block stands in for one convolution. It is a sum of branches (each linear in eval mode), and ``fold`` adds their
kernels: RepVGG (Ding et al. 2021), ACNet (Ding et al. 2019), Diverse Branch Block (Ding et al. 2021), MobileOne (Vasu
et al. 2023), DO-Conv (Cao et al. 2020), RepLKNet (Ding et al. 2022) and UniRepLKNet (Ding et al. 2024), one file each.

Why here, where those papers have code: as published, each is a layer of one architecture that assumes its own kernel,
stride or padding. A block of this package takes every option of the convolution it replaces, or refuses it by name,
goes into any model, carries gates inside and on top, and folds by the same ``fold``.

A user's own block joins with :func:`register_branch`.
"""

from __future__ import annotations

from stripefold.branches.base import Branch, PrimaryBranch
from stripefold.branches.geometry import ConvGeometry, KernelWindow
from stripefold.branches.parts import ConvolutionBranch, IdentityBranch
from stripefold.branches.registry import branch_names, register_branch

__all__ = [
    "Branch",
    "ConvolutionBranch",
    "ConvGeometry",
    "IdentityBranch",
    "PrimaryBranch",
    "KernelWindow",
    "branch_names",
    "register_branch",
]
