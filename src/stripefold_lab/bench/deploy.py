"""The deployed network, step by step: what each form of it is worth in images per second.

From the form that the reference code leaves (BatchNorm kept) to folded, fused, channels last, compiled, and to another
runtime; the backbone and the dynamic attention stand beside them. Forms that must compute the same are compared before
they are timed, and what cannot run here is listed with its reason.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import ExportError
from stripefold.export.batch import resized
from stripefold.export.check import check_file
from stripefold.export.program import capture, save_onnx
from stripefold.export.session import OnnxModel
from stripefold_lab.bench.reference import reference_deployed
from stripefold_lab.bench.report import Report
from stripefold_lab.bench.steps import inference, synthetic_batch
from stripefold_lab.bench.timing import Candidate, Settings, compare

REFERENCE, COPY, BACKBONE, DYNAMIC = "reference deployed, BatchNorm kept", "identical copy", "backbone", "+ {}"
FOLDED, FUSED, LAST, COMPILED = "folded", "folded, fused", "folded, fused, channels last", "... and compiled"
RUNTIME = "folded, fused, onnxruntime"
STEPS = (REFERENCE, FOLDED, FUSED, LAST, COMPILED)
"""Each builds on the one before."""


@dataclass(kw_only=True)
class Deployed:
    """What can be timed here, and what cannot.

    Attributes:
        candidates: The first is the baseline.
        skipped: Name -> reason.
    """

    candidates: list[Candidate]
    skipped: dict[str, str] = field(default_factory=dict)


def measure_deploy(
    title: str,
    model: nn.Module,
    shape: Sequence[int],
    settings: Settings,
    *,
    attention: str = "se",
    options: Mapping[str, Any] | None = None,
    compiled: bool = True,
    date: str = "",
) -> Report:
    """Time every deployed form of one model at one batch size.

    Args:
        title: What is measured, in words.
        model: The backbone; left as it is.
        shape: Of the images, (N, C, H, W).
        settings: How it is measured; the layout is a step of its own here, and memory is not measured.
        attention: A name of the zoo.
        options: More of `attach`'s options, such as `where`.
        compiled: Whether to compile too, which can take minutes.
        date: Day of the measurement.

    Returns:
        A report whose settings hold `batch` and what was `skipped`; its baseline is the reference's deployed form.

    Raises:
        VerifyError: Two forms that must agree do not.
    """
    settings = replace(settings, memory=False, channels_last=False)
    images, _ = synthetic_batch(shape, 1, settings)
    model = copy.deepcopy(model).to(settings.device)
    settle_(model, resized(images, 8))
    options = {"example": images[:1], **(options or {})}
    attached = sf.attach(model, attention, **options).eval()
    dynamic = sf.attach(model, attention, form="dynamic", **options)
    forms = {BACKBONE: model, DYNAMIC.format(attention.upper()): dynamic}
    deployed = deploy_candidates(attached, images, settings, others=forms, compiled=compiled)
    report = compare(title, deployed.candidates, settings, date=date)
    about = {"batch": shape[0], **({"skipped": deployed.skipped} if deployed.skipped else {})}
    return replace(report, settings={**report.settings, **about})


def deploy_candidates(
    attached: nn.Module,
    images: Tensor,
    settings: Settings,
    *,
    others: Mapping[str, nn.Module] | None = None,
    compiled: bool = True,
) -> Deployed:
    """Return the deployed forms of an attached model that run here.

    Args:
        attached: A model with gates, on the settings' device.
        images: Shape (N, C, H, W).
        settings: Device and dtype.
        others: Name -> model, timed beside them without a comparison: they compute something else.
        compiled: Whether to compile too.

    Raises:
        VerifyError: A form computes something else than the attached model.
    """
    example = images[:1]
    reference = reference_deployed(attached)
    folded = sf.fold(attached, example=example, check=False)
    fused = sf.fold(attached, fuse=True, example=example, check=False)
    plain = {REFERENCE: reference, COPY: copy.deepcopy(reference), FOLDED: folded, FUSED: fused}
    candidates = [inference(name, form, images, settings) for name, form in plain.items()]
    candidates[2:2] = [inference(name, form, images, settings) for name, form in (others or {}).items()]
    deployed = Deployed(candidates=candidates)
    last, rows = replace(settings, channels_last=True), images.to(memory_format=torch.channels_last)
    deployed.candidates.append(inference(LAST, copy.deepcopy(fused), rows, last))
    _add(deployed, COMPILED, "" if compiled else "not asked for", lambda: _compiled(fused, rows, last))
    _add(deployed, RUNTIME, _obstacle(settings), lambda: _runtime(fused, images, settings))
    if settings.dtype == "float32":  # under autocast each form rounds in its own places
        _compare(deployed, set(others or ()), attached, images)
    return deployed


def settle_(model: nn.Module, images: Tensor) -> None:
    """Give BatchNorms the statistics of some images, so that a fresh model's activations are of a usual size.

    Args:
        model: Ends in eval mode.
        images: Shape (N, C, H, W), N > 1.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches, here one
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def images_per_second(report: Report, name: str) -> float:
    """Return the median throughput of a row of `measure_deploy`."""
    return float(report.settings["batch"] / report.row(name).seconds.median)


def speed_up(report: Report, name: str) -> float:
    """Return how many times the baseline's throughput a row has: the median over rounds."""
    return 1.0 / report.row(name).ratio.median


def step_gains(report: Report) -> dict[str, float]:
    """Return what each step brings over the step before, as a factor of the throughput."""
    present = [row.name for row in report.rows]
    steps = [name for name in STEPS if name in present]
    pairs = itertools.pairwise(steps)
    return {name: speed_up(report, name) / speed_up(report, before) for before, name in pairs}


def _add(deployed: Deployed, name: str, obstacle: str, build: Callable[[], Candidate]) -> None:
    """Add a candidate, or the reason why there is none."""
    if obstacle:
        deployed.skipped[name] = obstacle
        return
    try:
        deployed.candidates.append(build())
    except (ExportError, _CompileError) as error:
        deployed.skipped[name] = str(error)


class _CompileError(Exception):
    """The compiler's own words, in one line."""


def _compiled(model: nn.Module, images: Tensor, settings: Settings) -> Candidate:
    torch._dynamo.reset()  # type: ignore[no-untyped-call, unused-ignore] # what was compiled for another batch size
    model = copy.deepcopy(model)
    candidate = inference(COMPILED, model, images, settings)
    model.compile()
    try:
        candidate.run()
    except Exception as error:  # inductor wraps whatever a compiler says in classes of its own
        raise _CompileError(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}") from error
    return candidate


def _obstacle(settings: Settings) -> str:
    return "" if settings.dtype == "float32" else f"the file is written in float32, not in {settings.dtype}"


def _runtime(fused: nn.Module, images: Tensor, settings: Settings) -> Candidate:
    """The fused model in onnxruntime, the images handed over as they lie in host memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(capture(copy.deepcopy(fused).cpu(), images.cpu()), path, {})
        model = OnnxModel(path, device=settings.device)
    feed = model.feed(images)
    return Candidate(name=RUNTIME, run=lambda: [torch.from_numpy(each) for each in model.session.run(None, feed)])


def _compare(deployed: Deployed, others: set[str], attached: nn.Module, images: Tensor) -> None:
    for candidate in deployed.candidates:
        if candidate.name not in others:
            check_file(lambda _, run=candidate.run: run(), attached, {candidate.name: images})  # type: ignore[misc]


def table(reports: Sequence[Report]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return head and rows of the comparison: per batch size images per second, speed-up and gain of the step.

    Args:
        reports: What `measure_deploy` gave, one per batch size.
    """
    head = ["form"]
    for report in reports:
        head += [f"images/s, batch {report.settings['batch']}", "speed-up", "quartiles", "step"]
    names = list(dict.fromkeys(row.name for report in reports for row in report.rows))
    return tuple(head), [(name, *(cell for report in reports for cell in _cells(report, name))) for name in names]


def _cells(report: Report, name: str) -> tuple[str, ...]:
    with suppress(StopIteration):
        ratio = report.row(name).ratio
        gain = step_gains(report).get(name)
        spread = f"{1 / ratio.upper:.2f} .. {1 / ratio.lower:.2f}"
        step = "" if gain is None else f"{gain:.2f}"
        return f"{images_per_second(report, name):.1f}", f"{1 / ratio.median:.2f}", spread, step
    return "skipped", "", "", ""
