"""Write a deployed file whole and checked, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.export import ExportedProgram

from stripefold.atomic import atomic_path
from stripefold.errors import CheckpointError, ExportError, VerifyError
from stripefold.export.batch import arguments_of, batch_size, noise_like, resized, several
from stripefold.export.check import check_file
from stripefold.export.program import compile_package, load_package, load_pt2, save_onnx, save_pt2
from stripefold.export.report import Outcome
from stripefold.export.session import OnnxModel
from stripefold.folding.weight_files import FileKind, file_info, load_tensors, save_model
from stripefold.modules.example import Example, example_to

ExportFormat = Literal["safetensors", "pt2", "aot", "onnx"]
BATCHES = (1, 3)
"""Batch sizes at which a file with an open batch is run: the special case, and one that was not traced."""


def write_weights(
    model: nn.Module, path: Path, kind: FileKind, extra: Mapping[str, Any] | None, *, check: bool
) -> tuple[dict[str, Any], Outcome]:
    """Write the state dict of a folded model, and read it back bit for bit.

    Returns:
        What the file says about itself, and how it was checked.

    Raises:
        VerifyError: the file holds other numbers (a failing disk).
    """
    with writing(path) as temporary:
        with naming(path, temporary):
            save_model(model, temporary, kind=kind, extra=extra)
        if check:
            _compare_tensors(model, temporary)
    info = file_info(path)
    about = {"kind": info.kind, "versions": info.versions, "extra": info.extra}
    notes = (f"read back: {len(model.state_dict())} tensors, the same bit for bit",) if check else ()
    return about, Outcome(checked=check, notes=notes)


def write_program(
    program: ExportedProgram,
    path: Path,
    form: ExportFormat,
    *,
    about: Mapping[str, Any],
    model: nn.Module,
    samples: Mapping[str, Example],
    examples: Mapping[str, Example] | None = None,
    opset: int | None = None,
) -> Outcome:
    """Write a captured program, read it back, and compare it with the eager model.

    Args:
        program: what `capture` gave.
        path: the file; its folder exists.
        form: ``pt2``, ``aot`` or ``onnx``.
        about: kept in the file, except by ``aot``, which has no place for it.
        model: the eager model that the file is to compute.
        samples: in words -> input to compare on; none: no check.
        examples: the same for the examples themselves.
        opset: version of the ONNX operators.

    Raises:
        ExportError: the format cannot hold the program, or its runtime is missing.
        VerifyError: the file computes something else.
    """
    with writing(path) as temporary:
        with naming(path, temporary):
            if form == "onnx":
                save_onnx(program, temporary, about, opset=opset)
            elif form == "aot":
                compile_package(program, temporary)
            else:
                save_pt2(program, temporary, about)
        if not samples:
            return Outcome(checked=False)
        checks = check_file(_reader(form)(temporary), model, {**samples, **(examples or {})})
    return Outcome(checked=True, checks=checks[: len(samples)], examples=checks[len(samples) :])


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As ``atomic_path``; a full disk is told with the name of the file.

    Raises:
        ExportError: the file cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise ExportError(
            f"cannot write {path}: {error.strerror or error}. What was there before is untouched"
        ) from error


@contextmanager
def naming(path: Path, temporary: Path) -> Iterator[None]:
    """Around what writes a temporary file: what torch and safetensors say of that is said of the file itself.

    Raises:
        ExportError: the file cannot be written.
    """
    try:
        yield
    except CheckpointError as error:
        raise ExportError(str(error).replace(str(temporary), str(path))) from error
    except RuntimeError as error:  # of torch's own writer, on a full disk
        reason = str(error).partition("\n")[0].replace(str(temporary), str(path))
        raise ExportError(f"cannot write {path}: {reason}. What was there before is untouched") from error


def samples_for(example: Example, inputs: Example | None, *, dynamic_batch: bool) -> dict[str, Example]:
    """What a file is compared on: noise at two batch sizes, and real input where there is some.

    Args:
        example: the model's example, on the CPU.
        inputs: real input, or a list of several.
        dynamic_batch: whether the batch size is open; else everything is brought to the example's.
    """
    sizes = BATCHES if dynamic_batch else (batch_size(example),)
    samples = {f"noise, batch {size}": noise_like(example, size, seed) for seed, size in enumerate(sizes)}
    fixed = None if dynamic_batch else sizes[0]
    return samples | _at_batches("given input", several(inputs), fixed)


def examples_for(examples: list[Example], *, dynamic_batch: bool) -> dict[str, Example]:
    """The examples as they are given, and their first samples where the batch size is open.

    Args:
        examples: the first of which was captured.
        dynamic_batch: whether the batch size is open; else all are brought to that of the first.
    """
    return _at_batches("example", examples, None if dynamic_batch or not examples else batch_size(examples[0]))


def _at_batches(name: str, inputs: list[Example], fixed: int | None) -> dict[str, Example]:
    """In words -> each input at batch size 1 and at its own, or at the one that is ``fixed``."""
    found: dict[str, Example] = {}
    for number, each in enumerate(inputs, start=1):
        real = example_to(each, torch.device("cpu"), None)
        named = f"{name} {number}" if len(inputs) > 1 else name
        for size in (1, batch_size(real)) if fixed is None else (fixed,):
            found[f"{named}, batch {size}"] = resized(real, size)
    return found


def _reader(form: ExportFormat) -> Callable[[Path], Callable[[Example], Any]]:
    """How a file of this form is read back, as a function of an example."""
    if form == "onnx":
        return OnnxModel
    load = load_package if form == "aot" else load_pt2

    def read(path: Path) -> Callable[[Example], Any]:
        run = load(path)

        def compute(example: Example) -> Any:
            positional, keywords = arguments_of(example)
            return run(*positional, **keywords)

        return compute

    return read


def _compare_tensors(model: nn.Module, path: Path) -> None:
    stored = load_tensors(path)
    for name, tensor in model.state_dict().items():
        same = name in stored and torch.equal(stored[name].view(-1), tensor.detach().cpu().contiguous().view(-1))
        if not same and not bool(tensor.isnan().any()):
            raise VerifyError(f"{name} reads back as other numbers than were written: the disk may be failing")
