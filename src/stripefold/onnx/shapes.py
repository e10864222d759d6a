"""The shape of every value, as one run shows it: files say little about shapes, and that often wrong."""

from __future__ import annotations

import onnx_ir as ir

from stripefold.onnx.read import Network
from stripefold.onnx.session import Feed, Session

Shapes = dict[str, tuple[int, ...]]

_NO_TENSORS = frozenset(
    {"SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceEmpty", "SplitToSequence", "Optional", "ZipMap"}
)


def run_shapes(network: Network, feed: Feed) -> Shapes:
    """Name -> shape of every value for one input; only shapes are kept, so it takes no more memory than a run.

    Raises:
        OnnxError: the network does not run on the input.
    """
    model = network.model()
    wanted = {}
    for node in list(model.graph):
        if node.op_type in _NO_TENSORS or node.op_type == "Constant":
            continue
        for value in node.outputs:
            if value.name:
                shape = ir.node("Shape", [value])
                shape.outputs[0].name = f"{value.name}/shape of"
                shape.outputs[0].type = ir.TensorType(ir.DataType.INT64)
                wanted[shape.outputs[0].name] = value.name
                model.graph.append(shape)
                model.graph.outputs.append(shape.outputs[0])
    session = Session(model, network.name, optimised=False)
    found = session.run(feed, list(wanted))
    shapes = {name: tuple(int(size) for size in shape) for name, shape in zip(wanted.values(), found, strict=True)}
    shapes |= {name: tuple(array.shape) for name, array in feed.items()}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            shapes[name] = tuple(int(size) for size in value.const_value.shape.numpy())
    return shapes
