"""``bake``: take the dynamic channel attention out of a trained network, at a known cost."""

from __future__ import annotations

from typing import Any

from torch import nn

from stripefold.baking.job import BakeJob
from stripefold.baking.options import BakeConfig, check_model, configured
from stripefold.baking.report import BakeReport
from stripefold.modules.example import Example
from stripefold.modules.thread_state import Interruptible


def bake(
    model: nn.Module, data: Any, config: BakeConfig | None = None, *, example: Example | None = None, **options: Any
) -> tuple[nn.Module, BakeReport]:
    """Replace the dynamic channel attention of a copy of a trained model by constants, and fold those.

    The scale vector of every attention is observed over calibration data; its mean goes into the layer in front or the
    layers behind, whichever the trace shows to be exact; where neither is, one multiplication per channel remains. What
    is left is a plain model without the attention modules.

    With ``max_drop``, a metric decides: each gate is made constant alone, then they are added one by one, the cheapest
    first, as long as the metric stays within the budget; the others keep their dynamic attention. The repairs come
    afterwards: BatchNorm statistics are re-estimated, the constants are trained for a while, if asked for.

    Args:
        model: any trained model; it stays as it is, and all runs are those of a copy in evaluation mode.
        data: calibration batches, as ``observe`` takes them; read more than once, so no generator.
        config: the options; None: the defaults.
        example: input for the trace; None takes it from the data. A list holds several inputs, one for each way in
            which the model is used: a constant folds only where it is exact on all of them.
        **options: those of ``BakeConfig`` by name, in place of what ``config`` says: ``constants``, ``to``, ``where``,
            ``metric``, ``max_drop``, ``validation``, ``recalibrate``, ``finetune``, ``settle``, ``device``,
            ``progress``, ``speed``, ``process_group``.

    Returns:
        The baked model, and what was done to it.

    Raises:
        BakeError: no channel attention, none that can be baked, a bad option, data that is empty, used up or without
            labels where they are needed, a metric or constants that are not finite; a returned model that breaks the
            budget, or that the metric sees otherwise than it judged the constant gates, beyond its own noise.
        ObserveError: the data are no input of the model, or its values are not finite (the layer is named).
        TraceError: the model does not run on the example.
        VerifyError: the baked model does not compute what the constant gates computed.

    Source: Huang et al. 2024 (ASR), section 2 for why it works; the rest is stripefold's own.
    """
    with Interruptible():
        chosen = configured(config, options)
        check_model(model)
        job = BakeJob(model, data, example, chosen)
        made, report = job.baked()
        return job.at_home(made), report


def bake_(
    model: nn.Module, data: Any, config: BakeConfig | None = None, *, example: Example | None = None, **options: Any
) -> BakeReport:
    """Bake in place. A copy is baked and compared first, so that a refusal leaves the model as it was.

    Takes the arguments of ``bake`` and raises the same errors, and ``BakeError`` where the model itself would have to
    be replaced.

    Returns:
        What was done to the model.
    """
    with Interruptible():
        chosen = configured(config, options)
        check_model(model)
        job = BakeJob(model, data, example, chosen, in_place=True)
        _, report = job.baked()
        job.apply_()
        return report
