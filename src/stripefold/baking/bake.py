"""``bake``: take the dynamic channel attention out of a trained network, at a known cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stripefold.baking.finetune import FineTune
from stripefold.baking.job import Job
from stripefold.baking.metric import Metric
from stripefold.baking.options import Constants, Options, Progress, Recalibrate, To, Where, check_model
from stripefold.baking.report import BakeReport
from stripefold.baking.settle_options import Settle
from stripefold.modules.example import Example
from stripefold.modules.interruptible import Interruptible


def bake(
    model: nn.Module,
    data: Any,
    *,
    example: Example | None = None,
    constants: Constants = "mean",
    to: To = "plain",
    where: Where | None = None,
    metric: Metric | None = None,
    max_drop: float | None = None,
    validation: Any = None,
    recalibrate: Recalibrate = "auto",
    finetune: FineTune | None = None,
    settle: Settle | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    speed: bool = False,
    process_group: Any = None,
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
        example: input for the trace; None takes it from the data. A list holds several inputs, one for each way in
            which the model is used: a constant folds only where it is exact on all of them.
        constants: "mean" of v over the images; "energy", or "least-squares": weighted by the energy of what is scaled,
            which leaves the least squared error of that; or "descriptor": the attention's own function of the mean
            descriptor, which is also where the gates of ``to="asr"`` start.
        to: "plain", or "asr": trainable gates of ASR instead (psi is the mean descriptor, theta the trained attention),
            to be trained further and folded by ``fold``.
        where: only the gates of these names: a glob, a list of globs, or a predicate ``(name, module) -> bool``.
        metric: a function of the model, higher is better; None is the top-1 accuracy in percent over ``validation``,
            or over ``data`` where it has class numbers.
        max_drop: how much the metric may fall before any repair, in its own units; None bakes every gate that can be.
        validation: (images, labels) batches for the accuracy. Each gate is measured alone if this, ``metric`` or
            ``max_drop`` is given: as many passes over it as there are gates, and with a budget twice as many.
        recalibrate: re-estimate the statistics of the BatchNorms behind the gates over ``data``: True, False, or
            "auto": keep them only where the metric improves.
        finetune: how the constants are trained, or None.
        settle: how all weights are trained while the gates move to constants, or None. All gates that can be are then
            baked; ``max_drop`` is what the result may have lost.
        device: where to work; None is where the model is, which stays there.
        progress: called with (what is going on, steps done, of how many).
        speed: also measure a forward pass before and after.
        process_group: decide over the processes of this group, each of which calls ``bake`` on the same model and its
            own share of ``data`` and ``validation``: moments, hits and BatchNorm statistics are merged, so that all
            bake alike. A ``metric`` of yours is called by all, and the first one's value counts. None stays in this
            process.

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
        options = Options(
            constants=constants, to=to, where=where, metric=metric, max_drop=max_drop, validation=validation,
            recalibrate=recalibrate, finetune=finetune, device=device, progress=progress, speed=speed,
            process_group=process_group, settle=settle,
        )  # fmt: skip
        check_model(model)
        job = Job(model, data, example, options)
        made, report = job.baked()
        return job.at_home(made), report


def bake_(
    model: nn.Module,
    data: Any,
    *,
    example: Example | None = None,
    constants: Constants = "mean",
    to: To = "plain",
    where: Where | None = None,
    metric: Metric | None = None,
    max_drop: float | None = None,
    validation: Any = None,
    recalibrate: Recalibrate = "auto",
    finetune: FineTune | None = None,
    settle: Settle | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    speed: bool = False,
    process_group: Any = None,
) -> BakeReport:
    """Bake in place. A copy is baked and compared first, so that a refusal leaves the model as it was.

    Takes the arguments of ``bake`` and raises the same errors, and ``BakeError`` where the model itself would have to
    be replaced.

    Returns:
        What was done to the model.
    """
    with Interruptible():
        options = Options(
            constants=constants, to=to, where=where, metric=metric, max_drop=max_drop, validation=validation,
            recalibrate=recalibrate, finetune=finetune, device=device, progress=progress, speed=speed,
            process_group=process_group, settle=settle,
        )  # fmt: skip
        check_model(model)
        job = Job(model, data, example, options, in_place=True)
        _, report = job.baked()
        job.apply_()
        return report
