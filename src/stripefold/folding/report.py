"""The fold report: what was folded, what was left, and why."""

from __future__ import annotations

from dataclasses import dataclass

from stripefold.modules.foldable import FoldNote


@dataclass(frozen=True)
class FoldReport:
    """What one ``fold`` did.

    Attributes:
        notes: one row per gate site or block of ours, and with ``fuse=True`` per re-parameterizable block, static scale
            and BatchNorm: merged, or kept and why.
        unmoved: sites whose gate never moved from its start: was the optimiser built before attaching?
        fused: whether it was asked to fuse: a file of the result is then loaded into ``fold(create(), fuse=True)``, as
            keys change where something is fused.
        verification: the equivalence report as text, or why no check was made.
        new_keys: biases of folded branch blocks that the stock model does not have, because no BatchNorm behind them
            could take them; with ``fuse=True`` keys change anyway, and none is listed.
        unseen: modules that did not run on the examples, and next to which nothing was merged.
    """

    notes: tuple[FoldNote, ...]
    unmoved: tuple[str, ...] = ()
    fused: bool = False
    verification: str = ""
    new_keys: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def folded(self) -> tuple[FoldNote, ...]:
        """Rows of what is now part of a plain layer."""
        return tuple(note for note in self.notes if note.folded)

    @property
    def left(self) -> tuple[FoldNote, ...]:
        """Rows of what stays as it is, with the reason."""
        return tuple(note for note in self.notes if not note.folded)

    def __str__(self) -> str:
        lines = [f"folded {len(self.folded)}, left {len(self.left)}"]
        lines += [f"  {'+' if n.folded else '-'} {n.name or '(root)'}  {n.kind}  {n.why}" for n in self.notes]
        if self.unmoved:
            listed = ", ".join(self.unmoved[:5]) + (" ..." if len(self.unmoved) > 5 else "")
            lines.append(
                f"gates that never moved from their start: {listed}. Was the optimiser built before attaching?"
            )
        if self.unseen:
            lines.append(f"did not run on the example: {', '.join(self.unseen)}")
        if self.fused:
            lines.append(
                "a file of these weights is loaded into fold(create(), fuse=True): keys change where something is fused"
            )
        return "\n".join([*lines, *([self.verification] if self.verification else [])])
