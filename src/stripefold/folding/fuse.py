"""``fuse=True``: merge the model's own BatchNorms and constants, where the trace shows that it is exact.

Blocks that re-parameterize themselves come first; then one trace, one plan of what else is merged (``merge_plan``), a
look at whether the model still runs what it ran, and one writing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import nn

from stripefold.errors import TraceError
from stripefold.folding.merge_plan import MergePlan, plan_merges
from stripefold.folding.missed_norms import MISSED, missed_by_the_code
from stripefold.folding.reparameterize import TensorShapes
from stripefold.folding.static_constants import is_step
from stripefold.folding.third_party import BlockFuser, has_blocks, offered
from stripefold.folding.trial_changes import Changes
from stripefold.graph.trace import Trace, trace
from stripefold.modules.example import Example
from stripefold.modules.float64_weights import Float64Weights
from stripefold.modules.foldable import FoldNote
from stripefold.modules.modes import kept_in_training


def fuse_(
    model: nn.Module, example: Example, weights: Float64Weights
) -> tuple[nn.Module, list[FoldNote], tuple[str, ...]]:
    """Fuse in place; a model with nothing to fuse is left alone.

    Args:
        model: a plain (folded) model; it is fused for eval mode, the running statistics become constants.
        example: input for the trace.
        weights: what its tensors were before folding rounded them.

    Returns:
        The root (another one only where the root itself is a block that was re-parameterized); one row per block,
        BatchNorm, static scale and addition: merged into what, or kept and why; and what did not run on the example.

    Raises:
        TraceError: the model does not run on the example.
        FoldError: what was merged cannot be written. The model is then as it was.
    """
    changes, root = Changes(), model
    try:
        blocks, model = _with_blocks_(model, example, weights, changes)
        recorded, model = _recorded_(model, example, blocks)
        plan = _install_(model, example, recorded, weights, changes)
        changes.commit_(plan.weights)
    except BaseException:
        changes.undo_(root)
        raise
    return model, [*(blocks.notes if blocks else ()), *plan.notes.values()], recorded.unseen


def _with_blocks_(
    model: nn.Module, example: Example, weights: Float64Weights, changes: Changes
) -> tuple[BlockFuser | None, nn.Module]:
    """Re-parameterize the blocks that know how, and their outermost first."""
    if not has_blocks(model):
        return None, model
    shapes: TensorShapes = {
        visit.name: graph.nodes[visit.inputs[0]].shape
        for graph in reversed(trace(model, example, is_layer=is_step).graphs)
        for visit in reversed(graph.module_calls)
        if visit.alone and offered(model.get_submodule(visit.name))
    }
    blocks = BlockFuser(shapes, weights, changes, kept_in_training(model))
    return blocks, blocks.run_(model)


def _recorded_(model: nn.Module, example: Example, blocks: BlockFuser | None) -> tuple[Trace, nn.Module]:
    """The one trace that everything but blocks is planned on."""
    try:
        return trace(model, example, is_layer=is_step), model
    except TraceError as error:
        if blocks is None or not blocks.changed:
            raise
        model = blocks.undo_(model, f"the model reads what is inside its blocks: {error}")
        return trace(model, example, is_layer=is_step), model


def _install_(
    model: nn.Module, example: Example, recorded: Trace, weights: Float64Weights, changes: Changes
) -> MergePlan:
    """Let the plan stand in, but for norms of which the model's code wants more than a call."""
    kept: dict[str, FoldNote] = {}
    while True:
        mark, plan = changes.mark(), plan_merges(model, recorded, weights, kept)
        names = _replaced(model, plan.replacements)
        changes.install_(plan.weights)
        changes.drop_(plan.dropped)
        changes.replace_(model, plan.replacements)
        missed = missed_by_the_code(model, example, recorded, names) if names else []
        if not missed:
            plan.notes |= kept
            return plan
        changes.undo_(model, to=mark)
        kept |= {name: replace(plan.notes[name], folded=False, why=MISSED, unseen=False) for name in missed}


def _replaced(model: nn.Module, replacements: Collection[nn.Module]) -> list[str]:
    """The paths of the modules that are replaced."""
    return [name for name, module in model.named_modules() if module in replacements]
