"""The plan of a fold, and the report of one: what is merged where, what stays, and why."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from stripefold.graph.paths_not_taken import DID_NOT_RUN
from stripefold.modules.foldable import FoldNote


@dataclass(frozen=True, kw_only=True)
class FoldPlan:
    """What ``fold`` would do.

    Attributes:
        notes: one row per gate site or block of ours, and with ``fuse=True`` per re-parameterizable block, static scale
            and BatchNorm: merged, or kept and why.
        unmoved: sites whose gate never moved from its start: was the optimiser built before attaching?
        fused: whether it was asked to fuse: a file of the result is then loaded into ``fold(create(), fuse=True)``, as
            keys change where something is fused.
        unseen: modules that did not run on the examples, and next to which nothing is merged.
    """

    notes: tuple[FoldNote, ...]
    unmoved: tuple[str, ...] = ()
    fused: bool = False
    unseen: tuple[str, ...] = ()
    _heading: ClassVar[str] = "would fold {folded}, would leave {left}"

    @property
    def folded(self) -> tuple[FoldNote, ...]:
        """Rows of what becomes part of a plain layer."""
        return tuple(note for note in self.notes if note.folded)

    @property
    def left(self) -> tuple[FoldNote, ...]:
        """Rows of what stays as it is, with the reason."""
        return tuple(note for note in self.notes if not note.folded)

    def __str__(self) -> str:
        lines = [self._heading.format(folded=len(self.folded), left=len(self.left))]
        lines += [f"  {'+' if n.folded else '-'} {n.name or '(root)'}  {n.kind}  {n.why}" for n in self.notes]
        if self.unmoved:
            listed = ", ".join(self.unmoved[:5]) + (" ..." if len(self.unmoved) > 5 else "")
            lines.append(
                f"gates that never moved from their start: {listed}. Was the optimiser built before attaching?"
            )
        if self.unseen:
            lines.append(f"{DID_NOT_RUN}: {', '.join(self.unseen)}")
        if self.fused:
            lines.append(
                "a file of these weights is loaded into fold(create(), fuse=True): keys change where something is fused"
            )
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class FoldReport(FoldPlan):
    """The plan that one ``fold`` carried out.

    Attributes:
        verification: the equivalence report as text, or why no check was made.
        new_keys: biases of folded branch blocks that the stock model does not have, because no layer behind them
            could take them; with ``fuse=True`` keys change anyway, and none is listed.
    """

    verification: str = ""
    new_keys: tuple[str, ...] = ()
    _heading: ClassVar[str] = "folded {folded}, left {left}"

    def as_plan(self) -> FoldPlan:
        """The plan alone."""
        return FoldPlan(**{each.name: getattr(self, each.name) for each in fields(FoldPlan)})

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *([self.verification] if self.verification else [])])
