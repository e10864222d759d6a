"""``fuse=True``: merge what the model itself carries, where the trace shows that it is exact.

In this order: blocks that re-parameterize themselves, static per-channel scales (LayerScale) and additions, BatchNorms
directly behind a convolution or linear layer, BatchNorms directly in front of one. By call order, never by the order of
definition.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import nn

from stripefold.errors import TraceError
from stripefold.folding.adapters import under_adapters
from stripefold.folding.deployed import Shapes
from stripefold.folding.fold_constants import fold_constants_
from stripefold.folding.fuse_behind import merge_behind_
from stripefold.folding.fuse_front import merge_in_front_
from stripefold.folding.fuse_parts import Setting, is_batchnorm, is_constant_affine, outside_sites
from stripefold.folding.ledger import Ledger
from stripefold.folding.missed import MISSED, missed_by_the_code
from stripefold.folding.third_party import BlockFuser, has_blocks, offered
from stripefold.graph.trace import Trace, trace
from stripefold.layers.rule import rule_for
from stripefold.modules.example import Example
from stripefold.modules.foldable import FoldNote
from stripefold.modules.held import held_by_functions
from stripefold.modules.modes import kept_in_training
from stripefold.modules.modules import tensor_owners

__all__ = ["fuse_", "is_batchnorm", "trace_for_fuse"]


def fuse_(model: nn.Module, example: Example) -> tuple[nn.Module, list[FoldNote], tuple[str, ...]]:
    """Fuse in place; a model with nothing to fuse is left alone.

    Args:
        model: a plain (folded) model; it is fused for eval mode, the running statistics become constants.
        example: input for the trace.

    Returns:
        The root (another one only where the root itself is a block that was re-parameterized); one row per block,
        BatchNorm, static scale and addition: merged into what, or kept and why; and what did not run on the example.

    Raises:
        TraceError: the model does not run on the example.
        FoldError: what was merged cannot be written. The model is then as it was.
    """
    ledger, root = Ledger(), model
    try:
        model, notes, unseen = _merge_(model, example, ledger)
        ledger.commit_()
    except BaseException:
        ledger.undo_(root)
        raise
    return model, notes, unseen


def _merge_(model: nn.Module, example: Example, ledger: Ledger) -> tuple[nn.Module, list[FoldNote], tuple[str, ...]]:
    """Merge everything that can be; until ``ledger.commit_`` the model's own tensors hold what they held."""
    blocks = None
    if has_blocks(model):
        blocks = BlockFuser(_block_inputs(model, example), ledger, kept_in_training(model))
    if blocks is not None:
        model = blocks.run_(model)
    try:
        constants, unseen = fold_constants_(model, example, ledger)
    except TraceError as error:
        if blocks is None or not blocks.changed:
            raise
        model = blocks.undo_(model, f"the model reads what is inside its blocks: {error}")
        constants, unseen = fold_constants_(model, example, ledger)
    notes = [*(blocks.notes if blocks else ()), *constants, *_merge_norms_(model, example, ledger)]
    return model, notes, unseen


def _block_inputs(model: nn.Module, example: Example) -> Shapes:
    """What every block that can re-parameterize itself is given, where that is one tensor."""
    shapes: dict[str, tuple[int, ...]] = {}
    for graph in trace_for_fuse(model, example).graphs:
        for visit in graph.visits:
            if visit.alone and offered(model.get_submodule(visit.name)):
                shapes.setdefault(visit.name, graph.nodes[visit.inputs[0]].shape)
    return shapes


def _merge_norms_(model: nn.Module, example: Example, ledger: Ledger) -> list[FoldNote]:
    """Merge BatchNorms, but for those of which the model's code wants more than a call."""
    kept: dict[str, FoldNote] = {}
    while True:
        mark, before = ledger.mark(), trace_for_fuse(model, example)
        notes = _merge_once_(model, example, ledger, before, kept)
        merged = [name for name, note in notes.items() if note.folded]
        missed = missed_by_the_code(model, example, before, merged) if merged else []
        if not missed:
            return list((notes | kept).values())
        ledger.undo_(model, to=mark)
        kept |= {name: replace(notes[name], folded=False, why=MISSED) for name in missed}


def _merge_once_(
    model: nn.Module, example: Example, ledger: Ledger, recorded: Trace, kept: Collection[str]
) -> dict[str, FoldNote]:
    """Merge BatchNorms into the layer behind which, or else in front of which, they run, until nothing changes."""
    notes: dict[str, FoldNote] = {}
    while True:
        modules = outside_sites(model)
        norms = [name for name, module in modules.items() if is_constant_affine(module) and name not in kept]
        if not norms:
            break
        setting = Setting(
            trace=trace_for_fuse(model, example) if notes else recorded,
            modules=modules,
            owners=tensor_owners(model),
            ledger=ledger,
            held=held_by_functions(model),
            kept=kept_in_training(model),
            adapted=under_adapters(model),
        )
        behind, rows = merge_behind_(setting, norms)
        left = [name for name, row in rows.items() if not row.folded]
        front, rows_in_front = merge_in_front_(setting, left)
        for name in left:
            rows[name] = _joined(rows[name], rows_in_front[name])
        notes |= rows
        ledger.replace_(model, behind | front)
        if not front or len(front) == len(left):  # a norm that is gone may have stood between others
            break
    return notes


def _joined(behind: FoldNote, front: FoldNote) -> FoldNote:
    """One row for a norm that could not be merged into the layer in front of it."""
    if front.folded or front.why == behind.why:
        return front
    return replace(front, why=f"{behind.why}; behind it: {front.why}")


def trace_for_fuse(model: nn.Module, example: Example) -> Trace:
    """The trace of a model, attached or folded, with BatchNorms among its layers.

    Raises:
        TraceError: the model does not run on the example.
    """
    return trace(model, example, is_layer=lambda module: rule_for(module) is not None or is_batchnorm(module))
