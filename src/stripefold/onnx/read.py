"""Read an ONNX network, and refuse what cannot be baked or must not be run, with one clear line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx_ir.passes.common import InlinePass

from stripefold.errors import OnnxError
from stripefold.inputs import check_regular
from stripefold.onnx.tensors import check_tensors, load_external

ModelSource = str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model
"""What is taken as a network: a file, its bytes, or a model in memory."""

MOST_BYTES = 2**31 - 1  # of one protobuf message
_MOST_NODES = 10**6  # after functions are written out
_QUANTISED = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger",
        "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "QGemm", "QAttention", "DynamicQuantizeLSTM",
    }
)  # fmt: skip


@dataclass(frozen=True)
class OnnxNetwork:
    """A network that was read and judged.

    Attributes:
        proto: with all weights, without functions; never changed.
        name: for messages and reports.
        bytes: size of the file, with its external data.
    """

    proto: onnx.ModelProto
    name: str
    bytes: int

    def model(self) -> ir.Model:
        """A new copy as a graph; values are known by their names in all copies."""
        return ir.from_proto(self.proto)


def read_network(source: ModelSource) -> OnnxNetwork:
    """Read a network.

    Args:
        source: a file, its bytes, or a model in memory, which stays as it is.

    Raises:
        OnnxError: not there, damaged, unsafe (external data outside its folder, sizes that do not fit), no valid ONNX
            model, or of a kind that cannot be baked: control flow, quantised, sparse.
    """
    proto, name, size = _proto(source)
    if not proto.graph.node:
        raise OnnxError(f"{name} holds no operations: is it an ONNX file?")
    check_tensors(proto, name)
    size += load_external(proto, Path(source).parent if isinstance(source, (str, os.PathLike)) else None, name)
    _refuse_kinds(proto, name)
    proto = _without_functions(proto, name)
    try:
        for node in proto.graph.node:
            _refuse_node(node, name)
    except TypeError as error:  # what is no UTF-8 comes as bytes
        raise OnnxError(f"{name} has names that are no text: it is damaged") from error
    _check(proto, name)
    network = OnnxNetwork(proto, name, size)
    try:
        network.model()
    except Exception as error:  # the library raises classes of its own, and what it trips over
        raise OnnxError(f"{name} holds what onnx-ir cannot read: {_first_line(error)}") from error
    return network


def _proto(source: ModelSource) -> tuple[onnx.ModelProto, str, int]:
    if isinstance(source, ir.Model):
        proto = ir.to_proto(source)
        return proto, source.graph.name or "the model", proto.ByteSize()
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return copy, source.graph.name or "the model", source.ByteSize()
    if isinstance(source, bytes):
        return _parsed(source, "the model"), "the model", len(source)
    if not isinstance(source, (str, os.PathLike)):
        raise OnnxError(f"expected an ONNX file or model, got {type(source).__name__}")
    path = Path(source)
    check_regular(path, OnnxError)
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise OnnxError(f"{path} has {size} bytes, more than an ONNX file can have (2 GiB): it is damaged")
        return _parsed(path.read_bytes(), str(path)), path.name, size
    except OSError as error:
        raise OnnxError(f"cannot read {path}: {error.strerror or error}") from error


def _parsed(content: bytes, name: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise OnnxError(f"{name} is no ONNX file, or it is damaged or cut off: it cannot be parsed") from error
    return proto


def _refuse_kinds(proto: onnx.ModelProto, name: str) -> None:
    if proto.training_info:
        raise OnnxError(f"{name} holds training graphs, which baking cannot keep: export it for inference")
    if proto.graph.sparse_initializer:
        raise OnnxError(f"{name} has sparse weights ({len(proto.graph.sparse_initializer)}): store them dense")


def _refuse_node(node: onnx.NodeProto, name: str) -> None:
    where = f"{node.op_type} {node.name or (node.output[0] if node.output else '')!r}"
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        raise OnnxError(
            f"{name} has control flow ({where}): what runs depends on the input there, so constants cannot be proven "
            "right. Export the network without it"
        )
    if node.op_type in _QUANTISED or node.op_type.startswith("QLinear"):
        raise OnnxError(
            f"{name} is quantised ({where}): its weights are rounded already. Bake the float network, then "
            "quantise the result"
        )


def _without_functions(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    if not proto.functions:
        return proto
    nodes = _expanded_nodes(proto, name)
    if nodes > _MOST_NODES:
        raise OnnxError(f"{name} would have {nodes} operations without its functions: it is damaged or hostile")
    try:
        return ir.to_proto(InlinePass()(ir.from_proto(proto)).model)
    except Exception as error:  # the pass raises classes of its own, and what it trips over
        raise OnnxError(f"the functions in {name} cannot be inlined: {_first_line(error)}") from error


def _expanded_nodes(proto: onnx.ModelProto, name: str) -> int:
    """How many operations there are once each call of a function is written out."""
    functions = {(function.domain, function.name): function for function in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Any, above: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in above:
                raise OnnxError(f"{name} has a function that calls itself: {key[1]!r}")
            if key in functions and key not in sizes:
                sizes[key] = size(functions[key].node, (*above, key))
            total += sizes.get(key, 1)
        return total

    return size(proto.graph.node, ())


def _check(proto: onnx.ModelProto, name: str) -> None:
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError, EncodeError) as error:
        reason = _first_line(error)
        if "topologically sorted" in reason:
            reason = f"its graph has a cycle, or an input that nothing computes ({reason})"
        raise OnnxError(f"{name} is no valid ONNX model: {reason}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
