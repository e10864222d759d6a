"""``export_model``: fold a trained model, write it, read it back, and run it beside the eager model."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stripefold.errors import ExportError, TraceError, one_line
from stripefold.export.batch import batch_size, several
from stripefold.export.program import capture
from stripefold.export.report import ExportReport
from stripefold.export.write import ExportFormat, examples_for, samples_for, write_program, write_weights
from stripefold.folding.fold import fold
from stripefold.folding.layer_by_layer import DoesNotRunError
from stripefold.folding.weight_files import FileKind
from stripefold.graph.record_run import describe
from stripefold.modules.example import Example, example_to, infer_example
from stripefold.modules.foldable import Foldable
from stripefold.modules.modes import kept_in_training
from stripefold.modules.modules import unwrapped
from stripefold.modules.thread_state import Interruptible

SUFFIXES: dict[str, ExportFormat] = {".safetensors": "safetensors", ".pt2": "pt2", ".onnx": "onnx"}
_WHY_NOT = {
    "safetensors": "a weights file holds numbers only",
    "onnx": "ONNX knows neither a layout in memory nor compiled code, its runtimes choose both",
}


def export_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example: Example | None = None,
    fuse: bool | None = None,
    dynamic_batch: bool = True,
    channels_last: bool = False,
    compiled: bool = False,
    check: bool = True,
    inputs: Example | None = None,
    opset: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write a model as a file that runs without stripefold; the model stays as it is.

    A model with gates is folded first. The file is written beside its place, read back, compared with the model that
    was given, on every input that was given, and only then moved there: a failed check leaves what was there before.

    Args:
        model: attached, folded or plain.
        path: ``NAME.safetensors`` (weights), ``NAME.pt2`` (`torch.export`) or ``NAME.onnx``; for the CPU.
        example: tensor, tuple or dict, the batch first, or a list of several such inputs, the first of which is
            captured; inferred where the model declares its input. Weights without ``fuse`` need none.
        fuse: merge BatchNorms too. None: yes for programs, whose keys nobody reads; no for ``.safetensors``, which
            then loads into the stock class.
        dynamic_batch: leave the batch size open (programs).
        channels_last: weights channels last, so that convolutions run in that layout (``.pt2``).
        compiled: compile ahead of time (``.pt2``); needs a C++ compiler here and the same kind of machine there.
        check: compare the folded model and the file with this one.
        inputs: real input to compare on, beside random numbers (programs); or a list of such.
        opset: version of the ONNX operators; None is torch's choice.
        extra: anything JSON can hold, kept in the file.

    Returns:
        What was folded, written and compared.

    Raises:
        ExportError: unknown suffix, an option that the format does not have, no example, a model that torch cannot
            capture or ONNX cannot hold.
        VerifyError: the file, or the folded model, computes something else.
        FoldError: the model cannot be folded.
    """
    with Interruptible():
        path = Path(path)
        form = _form(path, channels_last=channels_last, compiled=compiled)
        fuse = form != "safetensors" if fuse is None else fuse
        examples = several(example)
        looked_at = examples or infer_example(model)
        first = examples[0] if examples else looked_at
        if first is None and (fuse or form != "safetensors"):
            raise ExportError(
                f"{type(model).__name__} does not say what it takes: give example= (tensor, tuple or dict)"
            )
        with _inferred(model, None if examples else first):
            plain, folding = fold(model, fuse=fuse, example=looked_at, check=check and first is not None, report=True)
        plain = as_used(plain.cpu()).requires_grad_(False)
        kind = _kind(model, plain, fuse=fuse, weights=form == "safetensors")
        if form == "safetensors":
            about, outcome = write_weights(plain, path, kind, extra, check=check)
        else:
            first = example_to(first, torch.device("cpu"), None)
            about = _about(kind, extra, batch="dynamic" if dynamic_batch else batch_size(first), layout=channels_last)
            if channels_last:
                plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload, unused-ignore]
            program = capture(plain, first, dynamic_batch=dynamic_batch)
            samples = samples_for(first, inputs, dynamic_batch=dynamic_batch) if check else {}
            own = examples_for(examples, dynamic_batch=dynamic_batch) if check else {}
            reference = on_cpu(unwrapped(model)) if check else plain
            outcome = write_program(
                program, path, form, about=about, model=reference, samples=samples, examples=own, opset=opset
            )
        size = path.stat().st_size
        return ExportReport(path=path, form=form, about=about, bytes=size, folding=folding, outcome=outcome)


@contextmanager
def _inferred(model: nn.Module, example: Example | None) -> Iterator[None]:
    """Around runs on an example: one that nobody gave may be of another size than the model takes.

    Raises:
        ExportError: The model does not run on it; says what to give.
    """
    try:
        yield
    except (TraceError, DoesNotRunError) as error:
        if example is None:
            raise
        raise ExportError(
            f"{type(model).__name__} does not run on {describe(example)}, the size that it declares: give example= of "
            f"the size that it takes, such as example=torch.randn(1, 3, 96, 96) ({one_line(error)})"
        ) from error


def as_used(model: nn.Module) -> nn.Module:
    """Set every module of a model to the mode in which it is used for inference; returns the model."""
    kept = kept_in_training(model)
    for module in model.modules():
        module.training = module in kept
    return model


def on_cpu(model: nn.Module) -> nn.Module:
    """The model itself where all of it is on the CPU, else a copy there."""
    here = all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers()))
    return model if here else copy.deepcopy(model).cpu()


def _form(path: Path, *, channels_last: bool, compiled: bool) -> ExportFormat:
    """The form a path asks for, and whether it has the options."""
    form = SUFFIXES.get(path.suffix)
    if form is None:
        raise ExportError(f"cannot write {path}: the name must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ExportError(f"cannot write {path}: there is no folder {path.parent}")
    for name, asked in (("channels_last", channels_last), ("compiled", compiled)):
        if asked and form != "pt2":
            raise ExportError(f"{name} is an option of .pt2 files: {_WHY_NOT[form]}. Leave it out for {path.name}")
    return "aot" if compiled else form


def _kind(model: nn.Module, plain: nn.Module, *, fuse: bool, weights: bool) -> FileKind:
    """What was done to the model, in the words of `save_model`."""
    if any(isinstance(module, Foldable) for module in plain.modules()):
        if fuse and weights:
            raise ExportError(
                "the model keeps its dynamic attention, and with its BatchNorms fused no class loads such weights. "
                "Leave out fuse, or write .pt2 or .onnx"
            )
        return "attached"
    if fuse:
        return "fused"
    return "folded" if any(isinstance(module, Foldable) for module in model.modules()) else "plain"


def _about(kind: FileKind, extra: Mapping[str, Any] | None, *, batch: int | str, layout: bool) -> dict[str, Any]:
    from stripefold import __version__

    versions = {"stripefold": __version__, "torch": torch.__version__}
    return {
        "kind": kind,
        "versions": versions,
        "batch": batch,
        "channels_last": layout,
        "extra": dict(extra or {}),
    }
