"""Every call of a module within one recorded run: what went in, what came out, which values were made meanwhile."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ModuleCall:
    """One call of a module.

    Attributes:
        name: Dotted path of the module, the first of its paths.
        call: Which call of this module it was within the run, from 0.
        inputs: Nodes of the tensors among its positional arguments.
        outputs: Nodes of the tensors it returned.
        first: The first node made during the call.
        last: The first node made after it.
        alone: Its one argument was a tensor, by position.
        written: It wrote into a tensor that it was given.
    """

    name: str
    call: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    first: int
    last: int
    alone: bool = True
    written: bool = False


@dataclass(frozen=True)
class Results:
    """How a call ended: the nodes of what it was given, as they are by now, and of what it returned.

    ``alone``: its one argument was a tensor, by position.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    alone: bool


def is_alone(args: Any, kwargs: Any) -> bool:
    """Whether a call has one positional argument, a tensor, and nothing else."""
    return len(args) == 1 and isinstance(args[0], Tensor) and not kwargs


class ModuleCalls:
    """Collects the calls; those inside an opaque layer are not among them."""

    def __init__(self) -> None:
        self.done: list[ModuleCall] = []
        self._open: list[tuple[int, int, tuple[int, ...]]] = []
        self._counts: Counter[str] = Counter()

    def enter(self, depth: int, first: int, inputs: tuple[int, ...]) -> None:
        """A module begins, at this depth of nesting."""
        self._open.append((depth, first, inputs))

    def leave(self, depth: int, name: str | None, last: int, results: Results) -> None:
        """The module at this depth has returned; deeper ones that never did had raised, and are dropped.

        So is one that is no part of the model (None).
        """
        while self._open and self._open[-1][0] > depth:
            self._open.pop()
        if self._open and self._open[-1][0] == depth:
            _, first, inputs = self._open.pop()
            if name is None:
                return
            visit = ModuleCall(
                name=name, call=self._counts[name], inputs=inputs, outputs=results.outputs, first=first, last=last,
                alone=results.alone, written=inputs != results.inputs,
            )  # fmt: skip
            self._counts[name] += 1
            self.done.append(visit)
