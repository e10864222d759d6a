"""Capture a plain model as a program (`torch.export`) and write it as ``.pt2``, compiled or not, or as ONNX."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from stripefold.errors import ExportError
from stripefold.export.batch import TRACED, arguments_of, open_batch, resized
from stripefold.graph.record_run import describe
from stripefold.modules.example import Example
from stripefold.modules.preserve_state import preserve_state

KEY = "stripefold"
ONNX_LIMIT = 2_000_000_000
"""A protobuf message holds 2 GiB; larger ONNX models need a second file for their weights."""


def capture(model: nn.Module, example: Example, *, dynamic_batch: bool = True) -> ExportedProgram:
    """Record what a model in eval mode computes.

    Args:
        model: a plain model; left as it is.
        example: input of the model; the batch comes first.
        dynamic_batch: leave the batch size open; otherwise it is the example's.

    Raises:
        ExportError: torch cannot capture the model, or its code fixes the batch size.
    """
    example = resized(example, TRACED) if dynamic_batch else example
    positional, keywords = arguments_of(example)
    shapes = open_batch(example) if dynamic_batch else None
    try:
        with preserve_state(model) as captured:
            pass  # the copy is what is wanted: torch's own capture runs it under modes of its own
        with torch.no_grad():
            program = torch.export.export(captured, positional, keywords, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch's own capture and a user's forward raise anything
        advice = "dynamic_batch=False fixes the batch size" if dynamic_batch else "Write .safetensors instead"
        raise ExportError(
            f"torch.export cannot capture {type(model).__name__} on {describe(example)}: {_first_line(error)}. {advice}"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of the exporting machine's own files
    return program


def save_pt2(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
    """Write a program as ``.pt2``; `torch.export.load` reads it."""
    buffer = io.BytesIO()  # on a full disk torch's own writer takes the whole process down
    with warnings.catch_warnings():
        # Newer versions advise the suffix .pt2, which a file object does not show.
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")
        torch.export.save(program, buffer, extra_files={f"{KEY}.json": json.dumps(dict(about))})
    path.write_bytes(buffer.getbuffer())


def load_pt2(path: Path) -> Callable[..., Any]:
    """What a ``.pt2`` file computes."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        return torch.export.load(file).module()  # type: ignore[no-any-return, unused-ignore]


def compile_package(program: ExportedProgram, path: Path) -> None:
    """Compile a program ahead of time and write the package; `torch._inductor.aoti_load_package` reads it.

    Raises:
        ExportError: there is no C++ compiler, or it does not take the program.
    """
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "model.pt2"
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        except Exception as error:  # inductor wraps whatever a compiler says in classes of its own
            raise ExportError(
                f"the model cannot be compiled ahead of time: {_first_line(error)}. It needs a C++ compiler (g++ or "
                "clang++); leave compiled out and the file runs without one"
            ) from error
        path.write_bytes(package.read_bytes())


def load_package(path: Path) -> Callable[..., Any]:
    """What a compiled ``.pt2`` package computes."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "model.pt2"  # torch insists on the suffix
        package.write_bytes(path.read_bytes())
        return torch._inductor.aoti_load_package(str(package))  # type: ignore[no-any-return, unused-ignore]


def save_onnx(
    program: ExportedProgram,
    path: Path,
    about: Mapping[str, Any],
    *,
    opset: int | None = None,
) -> None:
    """Write a program as one ONNX file.

    Args:
        program: a captured program.
        path: the file.
        about: goes into the file's metadata.
        opset: version of ONNX's operators; None is torch's own choice.

    Raises:
        ExportError: ONNX cannot hold the program, or onnx and onnxscript are not installed.
    """
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > ONNX_LIMIT:
        raise ExportError(f"{size / 2**30:.1f} GiB of weights do not fit into an ONNX file (2 GiB): write .pt2")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks about its own converters
            onnx_program = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=opset)
    except ImportError as error:
        raise ExportError(f"ONNX needs more packages ({error}): pip install 'stripefold[export]'") from error
    except Exception as error:  # one class per version of torch
        raise ExportError(f"torch.onnx cannot write this model: {_first_line(error)}. Write .pt2 instead") from error
    assert onnx_program is not None
    graph = onnx_program.model.graph
    _name_batch(graph)
    for node in graph:
        node.metadata_props.clear()  # stack traces: lines of the exporting machine's own files
    onnx_program.model.metadata_props[KEY] = json.dumps(dict(about))
    onnx_program.save(str(path), external_data=False)


def _name_batch(graph: Any) -> None:
    """Call the open dimension ``batch``: torch leaves a symbol of its own there."""
    sizes = [size for each in graph.inputs if each.shape is not None for size in each.shape]
    symbols = {size.value for size in sizes if isinstance(getattr(size, "value", None), str)}  # the batch alone is open
    values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
    for shape in (value.shape for value in values if value.shape is not None):
        for index, size in enumerate(shape):
            if getattr(size, "value", None) in symbols:
                shape[index] = "batch"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
