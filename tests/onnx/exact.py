"""The truth that a baked network is held to, made without the code that bakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from stripefold import onnx as so


def run(model: onnx.ModelProto, feed: Any) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    named = feed if isinstance(feed, dict) else {session.get_inputs()[0].name: feed}
    return session.run(None, named)


def with_outputs(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in names:
        copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    return copy


def held_at(model: onnx.ModelProto, node: onnx.NodeProto, index: int, values: np.ndarray) -> onnx.ModelProto:
    """The network with a factor of one product replaced by numbers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = numpy_helper.from_array(values, "truth")
    if copy.ir_version < 4:
        copy.graph.node.insert(0, helper.make_node("Constant", [], ["truth"], value=tensor))
    else:
        copy.graph.initializer.append(tensor)
    place = next(each for each in copy.graph.node if each.name == node.name)
    place.input[index] = "truth"
    return copy


def mean_of(model: onnx.ModelProto, name: str, batches: list[Any]) -> np.ndarray:
    """The mean over all samples of a factor, (1, ...)."""
    wide = with_outputs(model, name)
    rows = np.concatenate([run(wide, batch)[-1] for batch in batches]).astype(np.float64)
    return rows.mean(0, keepdims=True)


def assert_bakes_exactly(
    model: onnx.ModelProto, batches: list[Any], node: onnx.NodeProto, index: int, *, tolerance: float = 1e-5
) -> tuple[onnx.ModelProto, so.OnnxBakeReport]:
    """Bake one gate, compare with the network that holds its mean, and see that this is another network."""
    baked, report = so.bake(model, batches, constants="mean", threads=1)
    mean = mean_of(model, node.input[index], batches)
    dtype = numpy_helper.to_array(model.graph.initializer[0]).dtype if model.graph.initializer else np.float32
    truth = held_at(model, node, index, mean.astype(dtype))
    moved = []
    for batch in batches:
        for expected, found, before in zip(run(truth, batch), run(baked, batch), run(model, batch), strict=True):
            size = np.abs(expected).max()
            assert np.abs(expected - found).max() <= tolerance * size
            moved.append(np.abs(expected - before).max() / size)
    assert max(moved) > max(20e-5, 2 * tolerance)  # the control
    return baked, report
