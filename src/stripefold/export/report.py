"""What was written, and how it was checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stripefold.folding.report import FoldReport


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison of the written file with the eager model.

    Attributes:
        inputs: what both were run on, such as ``noise, batch 3``.
        error: largest difference of the file's output from the float64 truth, over the truth's largest value.
        reference_error: the same of the eager model: its own rounding.
        tolerance: the largest error that this rounding allows.
        agreement: fraction of equal arg-max predictions, or None where the output does not look like scores.
    """

    inputs: str
    error: float
    reference_error: float
    tolerance: float
    agreement: float | None = None

    def __str__(self) -> str:
        agreement = "" if self.agreement is None else f", predictions agree {self.agreement:.2%}"
        allowed = f"allowed {self.tolerance:.2e}, eager {self.reference_error:.2e}"
        return f"{self.inputs}: relative error {self.error:.2e} ({allowed}){agreement}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a written file was checked.

    Attributes:
        checked: whether it was read back at all.
        checks: the comparisons with the eager model (programs), on random numbers and on ``inputs=``.
        examples: the same on the examples themselves.
        notes: what else was found.
    """

    checked: bool
    checks: tuple[Check, ...] = ()
    examples: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What one `export_model` did.

    Attributes:
        path: the file.
        form: ``safetensors``, ``pt2``, ``aot`` (a compiled ``.pt2``) or ``onnx``.
        about: what the file says about itself: kind, versions, batch.
        bytes: its size.
        folding: what was folded and fused on the way, and what was left.
        outcome: how the file was checked.
    """

    path: Path
    form: str
    about: dict[str, Any]
    bytes: int
    folding: FoldReport
    outcome: Outcome

    def __str__(self) -> str:
        """Return a few lines for a person."""
        folded = f"folded {len(self.folding.folded)}, left {len(self.folding.left)}"
        lines = [f"{self.path}: {self.form}, {self.about['kind']}, {self.bytes / 2**20:.1f} MiB; {folded}"]
        lines += [f"checked on {check}" for check in (*self.outcome.checks, *self.outcome.examples)]
        lines += self.outcome.notes if self.outcome.checked else ("not checked",)
        return "\n  ".join(lines)
