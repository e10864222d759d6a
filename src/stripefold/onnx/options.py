"""What a call of ``bake`` for ONNX asks for, checked before anything runs."""

from __future__ import annotations

import fnmatch
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stripefold.errors import BakeError
from stripefold.onnx.gates import Gate
from stripefold.onnx.metric import Metric
from stripefold.onnx.statistics import KINDS, Kind

Where = str | Sequence[str] | Callable[[str], bool]
Progress = Callable[[str, int, int], None]
"""(what is going on, steps done, of how many; 0 where that is not known)"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keyword arguments of ``stripefold.onnx.bake``."""

    output: str | os.PathLike[str] | None
    constants: Kind
    where: Where | None
    metric: Metric | None
    max_drop: float | None
    validation: Any
    price: bool
    speed: bool
    max_images: int | None
    threads: int
    progress: Progress | None

    def __post_init__(self) -> None:
        if self.constants not in KINDS:
            raise BakeError(f"constants={self.constants!r}: choose one of {', '.join(map(repr, KINDS))}")
        drop = self.max_drop
        number = isinstance(drop, (int, float)) and not isinstance(drop, bool) and math.isfinite(drop)
        if drop is not None and not number:
            raise BakeError(f"max_drop={drop!r}: give a finite number in units of the metric, such as 0.5, or None")
        if self.metric is not None and not callable(self.metric):
            raise BakeError(f"metric is {type(self.metric).__name__}: give a function of the network, higher is better")
        if self.metric is not None and self.validation is not None:
            raise BakeError("metric= and validation= are both given: a metric of yours brings its own data")
        for name, value, least in (("max_images", self.max_images, 1), ("threads", self.threads, 0)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise BakeError(f"{name}={value!r}: expected a whole number from {least}")
        if self.output is not None and not Path(self.output).absolute().parent.is_dir():
            raise BakeError(f"cannot write {os.fspath(self.output)}: its folder does not exist")

    def tell(self, what: str, done: int = 0, total: int = 0) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(what, done, total)


def choose(gates: Sequence[Gate], where: Where | None) -> list[Gate]:
    """The gates that ``where`` selects, in their order.

    Raises:
        BakeError: none, or a pattern that matches no gate; the gates' names are listed.
    """
    if where is None:
        return list(gates)
    if callable(where):
        chosen = [gate for gate in gates if where(gate.name)]
        missing = [] if chosen else ["the predicate given as where"]
    else:
        patterns = [where] if isinstance(where, str) else list(where)
        chosen = [gate for gate in gates if any(fnmatch.fnmatchcase(gate.name, pattern) for pattern in patterns)]
        missing = [repr(p) for p in patterns if not any(fnmatch.fnmatchcase(gate.name, p) for gate in gates)]
    if missing or not chosen:
        names = ", ".join(gate.name for gate in gates[:8]) + (" ..." if len(gates) > 8 else "")
        raise BakeError(f"where: {', '.join(missing) or 'an empty list'} selects no gate; the gates are {names}")
    return chosen
