"""BatchNorm statistics estimated anew: a constant gate shifts what the norms behind it see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stripefold.baking.batches import Batches
from stripefold.distributed import gathered, run_on_all_ranks
from stripefold.errors import BakeError
from stripefold.graph.graph import Graph
from stripefold.modules.example import run_example
from stripefold.modules.stand_in import is_plain
from stripefold.stripe.moments import Moments


@dataclass(frozen=True)
class Statistics:
    """The buffers of some modules, running statistics first of all, to go back to.

    Attributes:
        saved: (buffer, its content) pairs.
    """

    saved: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, modules: Iterable[nn.Module]) -> Statistics:
        """Remember them."""
        buffers = [buffer for module in modules for buffer in module.buffers(recurse=False)]
        return cls(tuple((buffer, buffer.clone()) for buffer in buffers))

    def restore_(self) -> None:
        """Write them back."""
        for buffer, content in self.saved:
            buffer.copy_(content)


def norms_behind(model: nn.Module, graph: Graph, products: Iterable[int]) -> dict[str, _BatchNorm]:
    """The BatchNorms with running statistics that some values of a trace reach, in call order.

    Args:
        model: the traced model.
        graph: of its trace, in which BatchNorms are layers.
        products: the nodes where gates are multiplied on.
    """
    wanted = sum({1 << product for product in products})
    modules = dict(model.named_modules())
    found: dict[str, _BatchNorm] = {}
    for index, node in enumerate(graph.nodes):
        module = modules.get(node.name) if node.kind == "layer" else None
        if is_plain(module, _BatchNorm) and module.running_mean is not None and graph.values_upstream[index] & wanted:
            found[node.name] = module
    return found


def recalibrate_(model: nn.Module, norms: Mapping[str, _BatchNorm], batches: Batches, group: Any = None) -> None:
    """Give norms the mean and the variance of their inputs over all batches; nothing else changes.

    The norms run in training mode meanwhile, so that each sees inputs normalised as they will be. Means and second
    moments are pooled over all values of all batches (the mean of the batches' variances would leave out how the
    batches' means differ).

    Args:
        model: in evaluation mode.
        norms: name -> module, of the model.
        batches: what it runs on.
        group: the processes whose batches count together; None: this one alone.

    Raises:
        BakeError: batches of one value per channel, or statistics that are not finite. The statistics are then what
            they were.

    Source: Wu, Johnson, *Rethinking "Batch" in BatchNorm*, 2021, section 3 (precise BatchNorm).
    """
    before = Statistics.of(norms.values())
    try:
        inputs = run_on_all_ranks(lambda: _run(model, norms, batches), group, BakeError)
        before.restore_()  # the runs moved them, and counted themselves
        parts = gathered([inputs[name].moments for name in norms], group, BakeError)
        for (name, norm), found in zip(norms.items(), zip(*parts, strict=True), strict=True):
            _write_(norm, name, [moments for moments in found if moments is not None])
    except BaseException as error:
        before.restore_()
        if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
            raise BakeError(
                f"{batches.name} has batches of a single value per channel, whose variance is 0: give larger batches, "
                "or recalibrate=False"
            ) from error
        raise


def _run(model: nn.Module, norms: Mapping[str, _BatchNorm], batches: Batches) -> dict[str, _Inputs]:
    with torch.no_grad(), _gathering(norms) as inputs:
        for batch in batches:
            run_example(model, batch.inputs)
    return inputs


class _Inputs:
    """Mean and variance per channel of what one norm is given, over all its calls; None before the first one."""

    def __init__(self) -> None:
        self.moments: Moments | None = None

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook: take in activations (N, C, ...)."""
        x = inputs[0].detach()
        rows = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(0, 1).flatten(1)
        variance, mean = torch.var_mean(rows, dim=1, correction=0)
        count = rows.shape[1]
        # 2 C numbers: the CPU has float64 everywhere, an accelerator may not.
        found = Moments(count, mean.cpu().double(), variance.cpu().double() * count)
        self.moments = found if self.moments is None else self.moments.merge(found)


def _write_(norm: _BatchNorm, name: str, found: list[Moments]) -> None:
    """Into the norm's buffers, merged; the variance unbiased, as BatchNorm keeps it."""
    if not found:
        return  # never called
    moments = reduce(Moments.merge, found)
    mean, variance = moments.mean, moments.m2 / max(1, moments.count - 1)
    if not bool(mean.isfinite().all() and variance.isfinite().all()):
        raise BakeError(f"the inputs of {name!r} are not finite: look at the data and the model before baking")
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


@contextmanager
def _gathering(norms: Mapping[str, _BatchNorm]) -> Iterator[dict[str, _Inputs]]:
    """Training mode for these norms, and their inputs' moments; flags and hooks as they were afterwards."""
    inputs = {name: _Inputs() for name in norms}
    with ExitStack() as stack:
        for name, norm in norms.items():
            stack.callback(norm.register_forward_pre_hook(inputs[name].add).remove)
            stack.callback(setattr, norm, "training", norm.training)
            norm.training = True
        yield inputs
