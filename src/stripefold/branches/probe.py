"""Try a registered kind on the very convolution it is to stand for: what it computes against what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.algebra.comparison import FLOAT64_TOLERANCE, relative_error
from stripefold.branches.base import Branch, PrimaryBranch
from stripefold.branches.geometry import ConvGeometry
from stripefold.errors import BranchError
from stripefold.layers.probe import twin_of

_SEED = 20240611
Build = Callable[..., Mapping[str, Branch]]


def probe_branches(name: str, build: Build, convolution: nn.Module, options: Mapping[str, Any]) -> None:
    """Check that the branches are what the block takes them for, on copies with random float64 numbers on the CPU.

    Each branch must compute in eval mode what its ``merged`` says. The first must compute what it loaded by
    ``load_conv_`` after ``init_identity_``; each other must give zeros after ``zero_init_``. No number of the
    convolution's own is read.

    Raises:
        BranchError: one of them is not so, with the branch and the measured error, or ``build`` gives no branches.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.autocast("cpu", enabled=False):
            torch.manual_seed(_SEED)
            with torch.device("cpu"):
                fault = _fault(build, convolution, options)
    except BranchError:
        raise
    except Exception as cause:  # a user's code may raise anything
        fault = f"it cannot be tried ({type(cause).__name__}: {cause})"
        raise BranchError(_message(name, convolution, fault)) from cause
    if fault is not None:
        raise BranchError(_message(name, convolution, fault))


def _message(name: str, convolution: nn.Module, fault: str) -> str:
    return f"the block {name!r} is wrong for {convolution}: {fault}. Mend what register_branch({name!r}) was given"


def _fault(build: Build, convolution: nn.Module, options: Mapping[str, Any]) -> str | None:
    grid, generator = ConvGeometry.of(convolution), torch.Generator("cpu").manual_seed(_SEED)
    branches: Any = build(grid, **options)
    if not isinstance(branches, Mapping) or not branches:
        return f"it gives {type(branches).__name__} where a mapping of names to branches is due"
    for key, branch in branches.items():
        if not isinstance(branch, Branch):
            return f"{key!r} is {type(branch).__name__}, which is no Branch"
    nn.ModuleDict(branches)  # raises for a name that no submodule can have
    first, *others = branches
    if not isinstance(branches[first], PrimaryBranch):
        return f"its first branch {first!r} is no PrimaryBranch, so that nothing takes the convolution's weights"
    x = _example(grid, generator)
    for key, branch in branches.items():
        twin: Any = twin_of(branch, generator)
        if reason := _difference(twin(x), grid.convolve(x, *twin.merged()), "its merged kernel"):
            return f"branch {key!r} {reason}"
    return _starting_fault(branches, first, others, convolution, x)


def _starting_fault(
    branches: Mapping[str, Branch], first: str, others: list[str], convolution: nn.Module, x: Tensor
) -> str | None:
    """What is wrong with the start from a pretrained convolution, ``init="identity"``."""
    generator = torch.Generator("cpu").manual_seed(_SEED)
    adopted = twin_of(convolution, generator)
    lead: Any = branches[first].double().eval()
    lead.load_conv_(adopted)
    lead.init_identity_()
    lead.flags()
    if reason := _difference(lead(x), adopted(x), "the convolution that it adopted"):
        return f"branch {first!r} after init_identity_ {reason}"
    for key in others:
        silent = branches[key].double().eval()
        silent.zero_init_()
        if bool(silent(x).count_nonzero()):
            return f"branch {key!r} gives other numbers than zeros after zero_init_"
    return None


def _difference(found: Tensor, expected: Tensor, of: str) -> str | None:
    if found.shape != expected.shape:
        return f"gives the shape {tuple(found.shape)}, and {of} {tuple(expected.shape)}"
    error = relative_error(found, expected)
    if error <= FLOAT64_TOLERANCE:
        return None
    return f"computes something else than {of} (relative error {error:.1e}, allowed {FLOAT64_TOLERANCE:.0e})"


def _example(grid: ConvGeometry, generator: torch.Generator) -> Tensor:
    """Two maps a little larger than the kernel and the padding need; borders are in them."""
    reach = zip(grid.size, grid.dilation, grid.stride, grid.before, grid.after, strict=True)
    size = [max(step * (taps - 1) + 1, front + 1, behind + 1) + 2 * every for taps, step, every, front, behind in reach]
    return torch.randn(2, grid.inputs, *size, generator=generator, dtype=torch.float64)
