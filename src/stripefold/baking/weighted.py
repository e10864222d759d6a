"""Constants weighted by the energy of what they scale: of all constants, those with the least squared error of v x.

argmin over c of sum (v x - c x)^2 is c = sum(v x^2) / sum(x^2), channel by channel, over images and positions. An image
on which a channel is silent has no say in its constant. Only x and y = v x are needed: c = sum(x y) / sum(x^2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.baking.batches import Batches
from stripefold.distributed import gathered, run_on_all_ranks
from stripefold.errors import BakeError
from stripefold.graph.graph import Graph
from stripefold.modules.example import run_example
from stripefold.modules.tensors import tensors_in
from stripefold.stripe.discover import ChannelGate, Discovery
from stripefold.stripe.gate_vectors import Expected, compact_shape, signature
from stripefold.stripe.product_mode import watching_products

Sums = dict[str, tuple[Tensor, Tensor]]
"""Gate -> sums of x y and of x^2 (C,), float64 on the CPU."""


def weighted_constants(
    model: nn.Module, discovery: Discovery, batches: Batches, group: Any = None
) -> dict[str, Tensor]:
    """Gate -> sum(v x^2) / sum(x^2) (C,), of those of which what is scaled can be seen.

    Args:
        model: a copy to work on, in evaluation mode.
        discovery: its gates.
        batches: what it runs on.
        group: the processes whose batches count together; None: this one alone.

    Returns:
        float64 on the CPU; nothing for a channel that is silent on all images: its entry is NaN.
    """
    sums: Sums = {}

    def run() -> None:
        with torch.no_grad(), _summing(model, discovery, sums):
            for batch in batches:
                run_example(model, batch.inputs)

    run_on_all_ranks(run, group, BakeError)
    parts = gathered(sums, group, BakeError)
    found = {}
    for name in sums:
        xy, xx = (sum(part[name][k] for part in parts if name in part) for k in (0, 1))
        found[name] = torch.as_tensor(xy) / torch.as_tensor(xx)
    return found


@contextmanager
def _summing(model: nn.Module, discovery: Discovery, sums: Sums) -> Iterator[None]:
    with ExitStack() as stack:
        for gate in discovery.gates:
            if gate.split > 1 or gate.groups > 1 or gate.where_calls != 1:
                continue
            module = model.get_submodule(gate.where)
            if gate.whole and gate.where and not gate.affine:
                stack.enter_context(_around(module, partial(_add, sums, gate, gate.given_axis)))
            else:
                stack.enter_context(
                    _inside(discovery.graph_of(gate), module, gate, partial(_add, sums, gate, gate.axis))
                )
        yield


def _add(sums: Sums, gate: ChannelGate, axis: int, x: Tensor, y: Tensor) -> None:
    """Take in a map with its channels on an axis, and what the gate made of it."""
    kept = [t.detach().transpose(0, axis).flatten(1) for t in (x, y.expand_as(x))]
    rows, scaled = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in kept)
    new = (rows * scaled).sum(1).cpu().double(), rows.square().sum(1).cpu().double()
    before = sums.get(gate.name)
    sums[gate.name] = new if before is None else (before[0] + new[0], before[1] + new[1])


def with_summands(
    model: nn.Module, discovery: Discovery, batches: Batches, constants: Mapping[str, Tensor], group: Any = None
) -> Discovery:
    """The same gates, affine ones with the summand b that goes with their constant: b = mean(y) - v mean(x).

    Of all constants b that is the one with the least squared error of v x + b, given v.

    Args:
        model: a copy to work on, in evaluation mode.
        discovery: its gates.
        batches: what it runs on.
        constants: gate -> v (C,).
        group: the processes whose batches count together; None: this one alone.
    """
    affine = [gate for gate in discovery.gates if gate.affine and gate.where_calls == 1 and gate.name in constants]
    if not affine:
        return discovery
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def add(gate: ChannelGate, x: Tensor, y: Tensor) -> None:
        rows = [t.detach().transpose(0, gate.given_axis).flatten(1).double() for t in (x, y)]
        a, b, n = sums.get(gate.name, (0, 0, 0))
        sums[gate.name] = a + rows[0].sum(1).cpu(), b + rows[1].sum(1).cpu(), n + rows[0].shape[1]

    def run() -> None:
        with torch.no_grad(), ExitStack() as stack:
            for gate in affine:
                stack.enter_context(_around(model.get_submodule(gate.where), partial(add, gate)))
            for batch in batches:
                run_example(model, batch.inputs)

    run_on_all_ranks(run, group, BakeError)
    parts = gathered(sums, group, BakeError)
    found: dict[str, tuple[float, ...]] = {}
    for name in sums:
        x, y, n = (sum(part[name][k] for part in parts if name in part) for k in (0, 1, 2))
        found[name] = tuple(((torch.as_tensor(y) - constants[name] * torch.as_tensor(x)) / n).tolist())
    return discovery.changed(lambda gate: replace(gate, summand=found.get(gate.name, ())))


@contextmanager
def _around(module: nn.Module, add: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """A module that is x -> v x: what goes in, and what comes out."""
    given: list[Tensor] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        given[:] = [next(tensors_in((args, kwargs))).clone()]  # which it may write into

    def after(module: nn.Module, args: Any, output: Any) -> None:
        add(given[0], next(tensors_in(output)))

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _inside(
    graph: Graph, module: nn.Module, gate: ChannelGate, add: Callable[[Tensor, Tensor], None]
) -> Iterator[None]:
    """A product in the forward of a module."""
    expected = Expected(graph, gate)
    count = 0

    def enter() -> None:
        nonlocal count
        count = 0

    def see(first: Tensor, second: Tensor) -> None:
        nonlocal count
        if signature(compact_shape(first), compact_shape(second)) == expected.signature:
            if count == expected.position:
                x = (first, second)[1 - expected.factor]
                add(x, x * (first, second)[expected.factor])
            count += 1

    with watching_products(module, enter, see):
        yield
