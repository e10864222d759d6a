"""Judge the tensors of a file before anything allocates memory for them, and load those that lie outside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo

from stripefold.errors import OnnxError
from stripefold.inputs import check_regular

_BITS = {
    "DOUBLE": 64, "INT64": 64, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128,
    "FLOAT": 32, "INT32": 32, "UINT32": 32, "FLOAT16": 16, "BFLOAT16": 16, "INT16": 16, "UINT16": 16,
    "INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2,
}  # fmt: skip
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
MOST_ELEMENTS = 2**31
"""Of one tensor: what a file of at most 2 GiB, with its external data, can hold."""


def check_tensors(proto: onnx.ModelProto, name: str) -> None:
    """Refuse tensors whose data do not fit their shape, and constants that would fill the memory when they are made.

    Raises:
        OnnxError: which tensor, and what is wrong with it.
    """
    for tensor in tensors_of(proto):
        where = f"tensor {tensor.name!r} of {name}"
        if any(size < 0 for size in tensor.dims):
            raise OnnxError(f"{where} has a negative size {tuple(tensor.dims)}: the file is damaged")
        count = math.prod(tensor.dims)
        if count > MOST_ELEMENTS:
            raise OnnxError(f"{where} claims {count} values, more than a file can hold: it is damaged or hostile")
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type == onnx.TensorProto.STRING:
            continue
        if tensor.HasField("raw_data") and len(tensor.raw_data) != _bytes(tensor, count):
            raise OnnxError(
                f"{where} has {len(tensor.raw_data)} bytes, {_bytes(tensor, count)} expected for "
                f"{tuple(tensor.dims)}: the file is damaged"
            )
        if not tensor.HasField("raw_data") and count and not any(len(getattr(tensor, field)) for field in _FIELDS):
            raise OnnxError(f"{where} claims {count} values and holds none: the file is damaged")
    _refuse_made(proto, name)


def _refuse_made(proto: onnx.ModelProto, name: str) -> None:
    """ConstantOfShape, Expand and Tile make tensors of any size from a few bytes."""
    known = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.output and node.attribute and node.attribute[0].HasField("t"):
            known[node.output[0]] = node.attribute[0].t
    for node in proto.graph.node:
        index = {"ConstantOfShape": 0, "Expand": 1}.get(node.op_type)
        sizes = known.get(node.input[index]) if index is not None and index < len(node.input) else None
        if sizes is None or sizes.data_location == onnx.TensorProto.EXTERNAL or len(sizes.dims) > 1:
            continue
        try:
            count = math.prod(int(size) for size in onnx.numpy_helper.to_array(sizes).reshape(-1))
        except (TypeError, ValueError) as error:
            raise OnnxError(f"tensor {sizes.name!r} of {name} cannot be read: {error}") from error
        if count > MOST_ELEMENTS:
            raise OnnxError(f"{node.op_type} {node.name!r} of {name} would make {count} values: damaged or hostile")


def load_external(proto: onnx.ModelProto, folder: Path | None, name: str) -> int:
    """Load what lies in other files, which must be in the model's own folder.

    Args:
        proto: filled in place.
        folder: of the model's file; None for a model in memory.
        name: of the model, for messages.

    Returns:
        The bytes that were loaded.

    Raises:
        OnnxError: a path that leads outside, a file that is missing or too short.
    """
    total = 0
    for tensor in tensors_of(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        if folder is None:
            raise OnnxError(f"tensor {tensor.name!r} of {name} lies in another file: give the model's path, or load it")
        content = _external(tensor, folder.resolve(), f"tensor {tensor.name!r} of {name}")
        total += len(content)
        if total > MOST_ELEMENTS:
            raise OnnxError(f"{name} has more than 2 GiB of external data, which one ONNX file cannot hold")
        tensor.raw_data = content
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    return total


def _external(tensor: onnx.TensorProto, folder: Path, where: str) -> bytes:
    try:
        info = ExternalDataInfo(tensor)
        offset, length = int(info.offset or 0), int(info.length or 0)
    except (TypeError, ValueError) as error:
        raise OnnxError(f"{where} says where its data lie in no readable way: {error}") from error
    location = str(info.location or "")
    path = (folder / location).resolve()  # through links
    if not location or Path(location).is_absolute() or folder not in path.parents:
        raise OnnxError(f"{where} has its data in {location!r}, outside the model's folder: that is refused")
    expected = _bytes(tensor, math.prod(tensor.dims))
    if (length and length != expected) or offset < 0:
        raise OnnxError(f"{where} has {length} bytes at {offset}, {expected} expected: the file is damaged")
    check_regular(path, OnnxError)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(expected)
    except OSError as error:
        raise OnnxError(f"{where} has its data in {location!r}: {error.strerror or error}") from error
    if len(content) != expected:
        raise OnnxError(f"{where}: {location!r} is too short, {len(content)} of {expected} bytes are there")
    return content


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a file: weights and attributes, in graphs inside nodes and in functions too."""
    graphs, nodes = [proto.graph], [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes += graph.node
        else:
            for attribute in nodes.pop().attribute:
                yield from [attribute.t] if attribute.HasField("t") else []
                yield from attribute.tensors
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs


def _bytes(tensor: onnx.TensorProto, count: int) -> int:
    try:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    except ValueError as error:
        raise OnnxError(
            f"tensor {tensor.name!r} has the unknown type {tensor.data_type}: the file is damaged"
        ) from error
    return (count * _BITS.get(kind, 8) + 7) // 8
