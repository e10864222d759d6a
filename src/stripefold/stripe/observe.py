"""``observe``: run a model over images and record what its channel attention gives for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.errors import ObserveError, TraceError
from stripefold.modules.example import Example, example_to, run_example
from stripefold.modules.foldable import Foldable
from stripefold.modules.modules import first_parameter, is_sharded, unwrap_name, unwrapped, wrapped_inside
from stripefold.modules.preserve_state import preserve_state, random_state_kept
from stripefold.modules.structural_copy import structural_copy
from stripefold.modules.thread_state import Interruptible
from stripefold.progress import ImageProgress
from stripefold.stripe.accumulate import Accumulator
from stripefold.stripe.batches import Batch, batches, count_arguments
from stripefold.stripe.diagnose import first_not_finite, module_that_failed
from stripefold.stripe.discover import Discovery, discover
from stripefold.stripe.processes import merged_over_processes
from stripefold.stripe.recording import Recording
from stripefold.stripe.report import StripeReport


def observe(
    model: nn.Module,
    data: Any,
    *,
    example: Example | None = None,
    device: torch.device | str | None = None,
    max_images: int | None = None,
    keep: int = 256,
    by_class: bool = False,
    progress: ImageProgress | None = None,
    process_group: Any = None,
) -> StripeReport:
    """Stripe Observation: the statistics of every dynamic channel attention over a data set.

    The gates are found by what they compute, so the model needs no preparation. It runs in evaluation mode without
    gradients and is afterwards what it was: modes, hooks, buffers, random state. Memory does not grow with the number
    of images. Under ``no_grad`` and not ``inference_mode``, whose tensors a model may cache and then fail to train on.

    Args:
        model: any model; DDP, DataParallel and ``torch.compile`` wrappers are looked through.
        data: batches as a DataLoader gives them: tensors, (images, labels) pairs, or mappings of keyword arguments; for
            detectors, (list of images, targets) pairs. A single tensor is one batch. Floating-point inputs are cast to
            the model's dtype.
        example: input for the trace that finds the gates; None takes it from the first batch. A tuple says that the
            model takes that many arguments from each batch. A list holds several inputs, one for each way in which the
            model is used: the gates of all are found, and the first says how many arguments a batch has.
        device: where to run; None is where the model is. The model itself stays where it is.
        max_images: stop after that many.
        keep: how many images' scale vectors are kept for pictures, the first ones.
        by_class: also the mean of every class, and the share of the variance that the class explains; needs labels
            (integers from 0). Of several vectors per image, those of one image must stand together, as frames do.
        progress: called after every batch with the number of images seen.
        process_group: merge over the processes of this group, each of which calls ``observe`` on its own share of the
            images; ``torch.distributed.group.WORLD`` for all. None stays in this process, also in a distributed run:
            a call made by one process only must not wait for the others.

    Returns:
        The report, the same on every process; without a layer for a model that has no channel attention.

    Raises:
        ObserveError: no images, data of an unknown kind, no labels for ``by_class``, a batch that the model does not
            take, values that are not finite (the first such layer is named), a gate that changes its shape.
        TraceError: the model does not run on the example.

    Source: Stripe Observation, Huang et al. 2024 (ASR), section 2.
    """
    with Interruptible():
        for name, value in (("keep", keep), ("max_images", max_images)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ObserveError(f"{name}={value!r}: expected a number of images, 0 or more")
        bare = _unwrapped(model)
        job = _ObserveJob(bare, device, keep, by_class, progress)

        def run() -> StripeReport | None:
            return job.run(batches(data, bare, arguments=count_arguments(example), max_images=max_images), example)

        report = run() if process_group is None else merged_over_processes(run, process_group)
        if report is None:
            raise ObserveError(
                "the data gave no images: nothing was observed. Is a generator used up, or max_images 0?"
            )
        return report


class _ObserveJob:
    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str | None,
        keep: int,
        by_class: bool,
        progress: ImageProgress | None,
    ) -> None:
        self.model, self.device = model, device
        self.keep, self.by_class, self.progress = keep, by_class, progress
        like = first_parameter(model)
        self._dtype = like.dtype if like is not None else None
        home = like.device if like is not None else torch.device("cpu")
        self._device = home if device is None else torch.device(device)

    def run(self, batches: Iterator[Batch], example: Example | None) -> StripeReport | None:
        """The report of this process, or None without a single image."""
        # The data is read inside as well: a loader draws random numbers when it starts.
        with random_state_kept(self.model):
            first = next(batches, None)
            if first is None:
                return None
            model = self.model if self.device is None else structural_copy(self.model).to(self._device)
            discovery = self._discovery(model, first, example)
            sums = Accumulator(discovery, keep=self.keep, by_class=self.by_class)
            images = 0
            if discovery.gates:
                with preserve_state(model, own_parameters=discovery.trace.writes_parameters) as copied:
                    images = self._pass(copied, itertools.chain([first], batches), Recording(discovery), sums)
        return _report(self.model, discovery, sums, images)

    def _discovery(self, model: nn.Module, first: Batch, example: Example | None) -> Discovery:
        if example is not None:
            return discover(model, self._placed(example))
        try:
            return discover(model, self._placed(first.pair()))
        except TraceError as error:
            failure = error
        if first.size == 2:
            raise failure
        return discover(model, self._placed(first.inputs))  # perhaps of a fixed batch size

    def _placed(self, inputs: Example) -> Example:
        return example_to(inputs, self._device, self._dtype)

    def _pass(self, model: nn.Module, batches: Iterator[Batch], recording: Recording, sums: Accumulator) -> int:
        images = 0
        last: tuple[Tensor, Batch] | None = None
        with recording.watching(model):
            for batch in batches:
                if self.by_class:
                    _check_labels(batch)
                self._record(model, recording, batch)
                finite = sums.add(recording, batch)
                self._check_finite(model, last)
                last = finite, batch
                images += batch.size
                if self.progress is not None:
                    self.progress(images)
            self._check_finite(model, last)
        return images

    def _record(self, model: nn.Module, recording: Recording, batch: Batch) -> None:
        recording.start()
        self._forward(model, batch)
        if recording.overwritten():
            recording.start()
            self._forward(model, batch)

    def _check_finite(self, model: nn.Module, last: tuple[Tensor, Batch] | None) -> None:
        """Look at a batch after the next one was started: an accelerator does not stand still for the answer."""
        if last is not None and not bool(last[0]):
            raise ObserveError(first_not_finite(model, self._placed(last[1].inputs), str(last[1])))

    def _forward(self, model: nn.Module, batch: Batch) -> None:
        inputs = self._placed(batch.inputs)
        try:
            run_example(model, inputs)
        except ObserveError:
            raise
        except Exception as error:  # a user's forward may raise anything
            message = (str(error).splitlines() or [""])[0]
            place = module_that_failed(model, error)
            raise ObserveError(
                f"{type(self.model).__name__} failed on {batch} {place}: {type(error).__name__}: {message}. Every "
                "batch must be an input that the model accepts"
            ) from error


def _report(model: nn.Module, discovery: Discovery, sums: Accumulator, images: int) -> StripeReport:
    from stripefold import __version__

    layers = sums.layers()
    recorded = {layer.name for layer in layers}
    unclear = {discovery.gates[i].name for i in sums.unclear}
    missed = []
    for gate in discovery.gates:
        if gate.name in unclear:
            missed.append(f"{gate.name}: its product could not be told from others that ran, and was left out")
        elif gate.name not in recorded:
            missed.append(f"{gate.name}: in the trace, but no batch came through it")
    return StripeReport(
        layers=tuple(layers),
        others=discovery.others,
        uncalled=_uncalled(model, discovery),
        unrecorded=tuple(missed),
        images=images,
        model=type(model).__name__,
        versions={"stripefold": __version__, "torch": str(torch.__version__)},
    )


def _uncalled(model: nn.Module, discovery: Discovery) -> tuple[str, ...]:
    """Layers that the run did not use; what is inside a site that ran is used in ways of its own."""
    ran = {visit.name for graph in discovery.trace.graphs for visit in graph.module_calls}
    sites = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, Foldable) and n in ran)
    return tuple(name for name in discovery.trace.uncalled if not name.startswith(sites))


def _check_labels(batch: Batch) -> None:
    labels: Tensor | None = batch.labels
    if labels is None:
        raise ObserveError(
            f"by_class needs the labels, and {batch} has none that can be read: give (images, labels) pairs, the "
            f"labels {batch.size} integers from 0"
        )
    if int(labels.min()) < 0:
        raise ObserveError(f"by_class counts classes from 0, and {batch} has the label {int(labels.min())}")


def _unwrapped(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ObserveError(f"observe needs an nn.Module, got {type(model).__name__}")
    model = unwrapped(model)
    wrapper = unwrap_name(model)
    if wrapper is not None or is_sharded(model):
        raise ObserveError(
            f"cannot observe a model wrapped in {wrapper or 'FSDP2 (fully_shard)'}: its modules cannot be looked into. "
            "Load its full state dict into a model that is not wrapped, and observe that"
        )
    compiled = wrapped_inside(model, "OptimizedModule")
    if compiled is not None:
        raise ObserveError(
            f"{compiled!r} is compiled, so its operations cannot be seen: observe the model before torch.compile, or "
            f"put {compiled}._orig_mod in its place"
        )
    return model
