"""What dynamic gates of a chained attention hand on from site to site in one forward (DIA: the state of its LSTM)."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from stripefold.errors import ChainError


class _Left(NamedTuple):
    """The state that a site has left for the next one, and what must be the same there."""

    position: int
    state: Any
    samples: int | None
    with_gradients: bool
    backward: int


class StateChain:
    """The sites of one chain in their order, and the one state that is on its way from a site to the next.

    The first site starts anew; each other one takes what the very site before it has left, which is gone then. So
    nothing outlives a forward that ran to its end, and a site whose predecessor did not run raises instead of reading
    what another forward left. Where a forward stopped halfway, the next call of a module around the whole chain drops
    what is left (``begin_with_``).

    Threads do not meet: each has a state of its own. Copies and files never hold one.
    """

    def __init__(self) -> None:
        self.sites: list[str] = []
        self._left: dict[int, _Left] = {}

    def join(self, site: str) -> int:
        """Take a site in behind the present last one; returns its position, from 0."""
        self.sites.append(site)
        return len(self.sites) - 1

    def begin(self, *_: object) -> None:
        """Drop what a forward that stopped halfway has left; a forward pre-hook."""
        self._left.pop(_thread(), None)

    def begin_with_(self, model: nn.Module) -> None:
        """Have every module of the model that holds the whole chain begin it when it is called."""
        if len(self.sites) < 2:
            return  # nothing is ever handed on
        for path in _around(self.sites):
            model.get_submodule(path).register_forward_pre_hook(self.begin)

    def take(self, position: int, x: Tensor) -> Any:
        """What the site before has left; None at the first site.

        Args:
            position: of the site that asks.
            x: its feature map, the samples first.

        Raises:
            ChainError: the site before did not run just before in this forward, ran without gradients while this one
                is to have some, or on another number of samples.
        """
        left = self._left.pop(_thread(), None)
        if position == 0:
            return None
        here, before = self.sites[position], self.sites[position - 1]
        if left is None or (left.position, left.backward) != (position - 1, _backward()):
            raise ChainError(
                f"{here!r} ran without the state of {before!r}: the sites of a chain run once each, in the order in "
                "which they were attached, within one forward. Do not skip or reorder them (stochastic depth that "
                "leaves blocks out), and let activation checkpointing recompute the module around the whole chain, "
                f"not single blocks of it; or use an attention without a chain. The chain: {_listed(self.sites)}"
            )
        if torch.is_grad_enabled() and not left.with_gradients:
            raise ChainError(
                f"{before!r} ran without gradients and {here!r}, which takes its state, runs with them: its gradient "
                "would be lost. Use checkpoint(..., use_reentrant=False), and requires_grad_(False) in place of "
                "no_grad for layers that do not train"
            )
        samples = _samples(x)
        if samples is not None and left.samples is not None and samples != left.samples:
            raise ChainError(
                f"{here!r} ran on {samples} samples and {before!r}, whose state it takes, on {left.samples}: the sites "
                "of a chain must see the same samples. Attach to these places in separate calls, which makes two chains"
            )
        return left.state

    def leave(self, position: int, x: Tensor, state: Any) -> None:
        """Leave a state for the next site; the last site leaves none. Arguments as for :meth:`take`."""
        if position + 1 < len(self.sites):
            self._left[_thread()] = _Left(position, state, _samples(x), torch.is_grad_enabled(), _backward())

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the sites, and no state."""
        return {"sites": list(self.sites), "_left": {}}


def tidy_chains_(model: nn.Module) -> None:
    """After gates have gone: a chain ends at the last site that is left; one without any takes its hooks along."""
    last: dict[StateChain, int] = {}
    for module in model.modules():
        chain = vars(module).get("chain")
        if isinstance(chain, StateChain):
            last[chain] = max(last.get(chain, 0), vars(module)["position"])
    for chain, position in last.items():
        del chain.sites[position + 1 :]
    for module in model.modules():
        hooks = module._forward_pre_hooks
        owners = {key: getattr(hook, "__self__", None) for key, hook in hooks.items()}
        for key, owner in owners.items():
            if isinstance(owner, StateChain) and owner not in last:
                del hooks[key]


def _thread() -> int:
    """Which thread this is; code that is being compiled runs in one."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _backward() -> int:
    """Which backward pass recomputes something now, -1 outside: what one has left is none of the next one's."""
    return -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


def _samples(x: Any) -> int | None:
    """How many samples a map has, or None under tracers that take the number for a variable."""
    traced = isinstance(x, fx.Proxy) or (not torch.compiler.is_compiling() and torch._C._is_tracing())
    samples: int | None = None if traced else x.shape[0]  # not int(): a batch that stays open is a symbol
    return samples


def _around(sites: list[str]) -> list[str]:
    """The paths of all modules that hold every one of these, from the root inwards."""
    paths = [""]
    for parts in zip(*(site.split(".")[:-1] for site in sites), strict=False):
        if len(set(parts)) > 1:
            break
        paths.append(f"{paths[-1]}.{parts[0]}".lstrip("."))
    return paths


def _listed(sites: list[str]) -> str:
    return ", ".join(sites[:4]) + (f", ... ({len(sites)} in all)" if len(sites) > 4 else "")
