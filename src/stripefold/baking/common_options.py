"""What baking a torch model and baking an ONNX file are asked alike; no torch is needed here."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from stripefold.errors import BakeError
from stripefold.progress import StepProgress


class NamedGate(Protocol):
    """A gate, as far as choosing among gates goes."""

    @property
    def name(self) -> str:
        """Its name."""


AnyGate = TypeVar("AnyGate", bound=NamedGate)


@dataclass(frozen=True, kw_only=True)
class BakeOptions:
    """The options of both.

    Attributes:
        where: only the gates of these names: a glob, a list of globs, or a predicate.
        metric: a function of the model, higher is better; None is the accuracy, or what else the data allow.
        max_drop: how much the metric may fall, in its own units; None bakes every gate that can be.
        validation: other data for the metric.
        speed: also measure a run before and after.
        progress: called with (what is going on, steps done, of how many).
    """

    judged: ClassVar[str] = "model"

    where: Any = None
    metric: Any = None
    max_drop: float | None = None
    validation: Any = None
    speed: bool = False
    progress: StepProgress | None = None

    def __post_init__(self) -> None:
        drop = self.max_drop
        number = isinstance(drop, (int, float)) and not isinstance(drop, bool) and math.isfinite(drop)
        if drop is not None and not number:
            raise BakeError(f"max_drop={drop!r}: give a finite number in units of the metric, such as 0.5, or None")
        if self.metric is not None and not callable(self.metric):
            kind = type(self.metric).__name__
            raise BakeError(f"metric is {kind}: give a function of the {self.judged}, higher is better")
        if self.metric is not None and self.validation is not None:
            raise BakeError("metric= and validation= are both given: a metric of yours brings its own data")

    def tell(self, what: str, done: int = 0, total: int = 0) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(what, done, total)

    def chosen(self, gates: Sequence[AnyGate], asked: Callable[[AnyGate], bool]) -> list[AnyGate]:
        """The gates that ``where`` selects, in their order.

        Args:
            gates: all of them.
            asked: what ``where`` says to a gate where it is a predicate.

        Raises:
            BakeError: none, or a pattern that matches no gate; the gates' names are listed.
        """
        where = self.where
        if where is None:
            return list(gates)
        if callable(where):
            found = [gate for gate in gates if asked(gate)]
            missing = [] if found else ["the predicate given as where"]
        else:
            patterns = [where] if isinstance(where, str) else list(where)
            found = [gate for gate in gates if any(fnmatch.fnmatchcase(gate.name, pattern) for pattern in patterns)]
            missing = [repr(p) for p in patterns if not any(fnmatch.fnmatchcase(gate.name, p) for gate in gates)]
        if missing or not found:
            names = ", ".join(gate.name or "(the model)" for gate in gates[:8]) + (" ..." if len(gates) > 8 else "")
            raise BakeError(f"where: {', '.join(missing) or 'an empty list'} selects no gate; the gates are {names}")
        return found
