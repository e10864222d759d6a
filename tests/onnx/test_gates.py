"""Gates are found by shape and dependence, in whatever way they are written; everything else is named with a reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from stripefold import onnx as so
from stripefold.errors import BakeError
from tests.onnx.exact import assert_bakes_exactly, run
from tests.onnx.nets import FORMS, C, Graph, classifier, data, gated, kinds

POOLS = {
    "GlobalAveragePool",
    "GlobalMaxPool",
    "ReduceMean",
    "ReduceSum",
    "AveragePool",
    "Sigmoid",
    "HardSigmoid",
    "Clip",
}


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_found_baked_and_gone(form: str, opset: int) -> None:
    model = gated(form, opset=opset)
    product = next(node for node in reversed(model.graph.node) if node.op_type == "Mul")
    baked, report = assert_bakes_exactly(model, data(), product, 1)
    assert [site.outcome for site in report.sites] == ["folded"]
    assert not POOLS & set(kinds(baked))
    assert kinds(baked) == ["Conv", "Conv"]
    assert report.operations_after == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_factor_may_stand_on_either_side(order: tuple[int, int]) -> None:
    graph = Graph()
    x = graph.conv("x", C, 3, 3)
    operands = (x, graph.excite(graph.op("GlobalAveragePool", x)))
    model = graph.model(graph.conv(graph.op("Mul", *(operands[i] for i in order))))
    product = next(node for node in model.graph.node if node.op_type == "Mul")
    assert_bakes_exactly(model, data(), product, order.index(1))


def test_channels_last() -> None:
    graph = Graph()
    x = graph.op("Transpose", graph.conv("x", C, 3, 3), perm=[0, 2, 3, 1])
    factor = graph.op("Sigmoid", graph.op("MatMul", graph.mean(x, 1, 2), graph.weight(C, C)))
    x = graph.op("Transpose", graph.op("Mul", x, factor), perm=[0, 3, 1, 2])
    model = graph.model(graph.conv(x))
    product = next(node for node in model.graph.node if node.op_type == "Mul")
    baked, report = assert_bakes_exactly(model, data(), product, 1)
    assert report.sites[0].channels == C
    assert set(kinds(baked)) == {"Conv", "Transpose"}


def test_tokens() -> None:
    graph = Graph()
    x = graph.op("MatMul", "x", graph.weight(5, C))
    factor = graph.op("Sigmoid", graph.op("MatMul", graph.mean(x, 1), graph.weight(C, C)))
    model = graph.model(graph.op("MatMul", graph.op("Mul", x, factor), graph.weight(C, 4)), shape=("N", "L", 5))
    product = next(node for node in model.graph.node if node.op_type == "Mul")
    baked, _ = assert_bakes_exactly(model, data(shape=(7, 5)), product, 1)
    assert kinds(baked) == ["MatMul", "MatMul"]


@pytest.mark.parametrize("way", ["unsqueeze", "reshape", "transposed", "both"])
def test_the_layer_ahead_says_the_channels_through_views(way: str) -> None:
    """Nothing lies behind the map; between the gate and its convolution the axes move."""
    graph = Graph()
    channels_last = way in ("transposed", "both")
    pooled = graph.mean("x", 1 if channels_last else 2)
    inside = graph.op("Transpose", pooled, perm=[0, 2, 1]) if channels_last else pooled
    factor = graph.op("Sigmoid", graph.op("Conv", inside, graph.weight(C, C, 1)))
    factor = graph.op("Transpose", factor, perm=[0, 2, 1]) if channels_last else factor
    x = graph.op("Mul", "x", factor)
    if channels_last:
        x = graph.op("Transpose", x, perm=[0, 2, 1])
    if way in ("unsqueeze", "both"):
        x = graph.conv(graph.op("Unsqueeze", x, graph.axes(2)))
    elif way == "reshape":
        x = graph.conv(graph.op("Reshape", x, graph.axes(0, C, 3, -1)))
    else:
        x = graph.op("Conv", x, graph.weight(C, C, 1))
    shape = ("N", "L", C) if channels_last else ("N", C, "L")
    model = graph.model(x, shape=shape)
    product = next(node for node in model.graph.node if node.op_type == "Mul")
    baked, report = assert_bakes_exactly(model, data(shape=(9, C) if channels_last else (C, 9)), product, 1)
    assert report.sites[0].outcome == "folded"
    assert not POOLS & set(kinds(baked))


@pytest.mark.parametrize("behind", [True, False])
def test_a_transposition_without_perm_turns_all_axes(behind: bool) -> None:
    """(N, C, H, W), (W, H, C, N), (W, C, N, H) and back, before the gate or after it."""

    def turned(x: str) -> str:
        x = graph.op("Transpose", graph.op("Transpose", x), perm=[0, 2, 3, 1])
        return graph.op("Transpose", graph.op("Transpose", x, perm=[0, 3, 1, 2]))

    graph = Graph()
    x = graph.conv("x", C, 3, 3) if behind else "x"
    x = graph.se(turned(x) if behind else x)
    model = graph.model(x) if behind else graph.model(graph.conv(turned(x)), shape=("N", C, "H", "W"))
    product = next(node for node in model.graph.node if node.op_type == "Mul")
    _, report = assert_bakes_exactly(model, data(shape=(3 if behind else C, 8, 10)), product, 1)
    assert report.sites[0].channels == C
    assert report.sites[0].outcome == "folded"


@pytest.mark.parametrize("end", ["div", "sqrt", "dropout", "views"])
def test_one_over_something_is_a_normalisation_however_it_ends(end: str) -> None:
    graph = Graph()
    x = graph.conv("x", C, 3, 3)
    size = graph.op("Add", graph.mean(graph.op("Mul", x, x), 2, 3), graph.const(np.float32(1)))
    factor = graph.op("Reciprocal", size)
    if end == "div":
        factor = graph.op("Div", factor, graph.const(np.float32(3)))
    elif end == "sqrt":
        factor = graph.op("Sqrt", factor)
    elif end == "dropout":
        factor = graph.op("Dropout", factor)
    else:
        factor = graph.op("Cast", graph.op("Reshape", factor, graph.axes(0, 0, 1, 1)), to=1)
    model = graph.model(graph.conv(graph.op("Mul", x, factor)))
    with pytest.raises(BakeError, match="no channel attention"):
        so.bake(model, data(), threads=1)
    graph.nodes = graph.nodes[:-2]
    control = graph.model(graph.op("Mul", x, graph.op("Sigmoid", factor)))  # a gate may be computed from such a factor
    assert so.bake(control, data(), threads=1)[1].sites[0].outcome == "folded"


def test_one_dimension() -> None:
    graph = Graph()
    x = graph.op("Conv", "x", graph.weight(C, 3, 3), pads=[1, 1])
    factor = graph.op("Sigmoid", graph.op("Conv", graph.op("GlobalAveragePool", x), graph.weight(C, C, 1)))
    model = graph.model(graph.op("Mul", x, factor), shape=("N", 3, "L"))
    product = next(node for node in model.graph.node if node.op_type == "Mul")
    baked, _ = assert_bakes_exactly(model, data(shape=(3, 9)), product, 1)
    assert kinds(baked) == ["Conv"]
    assert baked.graph.output[0].name == model.graph.output[0].name


def test_a_map_of_a_single_position() -> None:
    graph = Graph()
    x = graph.op("Conv", "x", graph.weight(C, 3, 8, 10))
    model = graph.model(graph.conv(graph.op("Mul", x, graph.excite(graph.op("GlobalAveragePool", x)))))
    report = so.observe(model, data())
    assert [layer.channels for layer in report.layers] == [C]


def test_batches_of_one_and_of_other_sizes() -> None:
    model = gated("global pool")
    batches = [*data(2, 1), *data(1, 3, (3, 5, 7))]
    product = next(node for node in model.graph.node if node.op_type == "Mul")
    assert_bakes_exactly(model, batches, product, 1)


def _spatial(g: Graph, x: str) -> str:
    return g.op("Mul", x, g.op("Sigmoid", g.conv(x, 1)))


def _instance_norm(g: Graph, x: str) -> str:
    centred = g.op("Sub", x, g.mean(x, 2, 3))
    spread = g.op("Sqrt", g.mean(g.op("Mul", centred, centred), 2, 3))
    return g.op("Mul", centred, g.op("Reciprocal", g.op("Add", spread, g.const(np.float32(1e-3)))))


def _divided(g: Graph, x: str) -> str:
    return g.op("Div", x, g.op("Add", g.mean(g.op("Abs", x), 2, 3), g.const(np.float32(1))))


def _one_over(g: Graph, x: str) -> str:
    size = g.op("Add", g.mean(g.op("Abs", x), 2, 3), g.const(np.float32(1)))
    return g.op("Mul", x, g.op("Mul", g.op("Div", g.const(np.float32(1)), size), g.weight(1, C, 1, 1)))


def _power(g: Graph, x: str) -> str:
    size = g.op("Add", g.mean(g.op("Abs", x), 2, 3), g.const(np.float32(1)))
    return g.op("Mul", x, g.op("Pow", size, g.const(np.float32(-0.5))))


def _elementwise(g: Graph, x: str) -> str:
    return g.op("Mul", x, g.op("Sigmoid", x))


def _whole_sample(g: Graph, x: str) -> str:
    return g.op("Mul", x, g.op("Sigmoid", g.mean(x, 1, 2, 3)))


def _outer(g: Graph, x: str) -> str:
    return g.op("Mul", g.mean(x, 3), g.mean(x, 2))


def _coordinate(g: Graph, x: str) -> str:
    return g.op("Mul", x, g.op("Sigmoid", g.mean(x, 3)))


@pytest.mark.parametrize(
    ("form", "why"),
    [
        (_spatial, "a spatial gate"),
        (_instance_norm, "a normalisation"),
        (_divided, "a normalisation"),
        (_one_over, "a normalisation"),
        (_power, "a normalisation"),
        (_elementwise, "element by element"),
        (_whole_sample, "one number for a whole sample"),
        (_outer, "an outer product"),
        (_coordinate, "differs over positions"),
    ],
)
def test_what_is_no_gate_is_named(form: Callable[[Graph, str], str], why: str) -> None:
    graph = Graph()
    model = graph.model(graph.conv(form(graph, graph.conv("x", C, 3, 3))))
    report = so.observe(model, data())
    assert report.layers == ()
    assert any(why in other.why for other in report.others)


def test_a_factor_from_another_input_is_no_attention() -> None:
    graph = Graph()
    factor = graph.op(
        "Reshape", graph.op("Gemm", "y", graph.weight(5, C)), graph.const(np.asarray([0, C, 1, 1], np.int64))
    )
    output = graph.conv(graph.op("Mul", graph.conv("x", C, 3), factor))
    model = graph.model(output, inputs={"x": ("N", 3, 8, 10), "y": ("N", 5)})
    rng = np.random.default_rng(0)
    feed = {"x": data(1)[0], "y": rng.standard_normal((2, 5)).astype(np.float32)}
    report = so.observe(model, feed)
    assert report.layers == ()
    assert "comes from another input" in report.others[0].why


def test_tokens_beside_no_layer_are_not_guessed() -> None:
    graph = Graph()
    model = graph.model(graph.op("Mul", "x", graph.op("Sigmoid", graph.mean("x", 2))), shape=("N", "L", 5))
    report = so.observe(model, data(shape=(7, 5)))
    assert "no layer beside it says" in report.others[0].why


def test_a_weight_per_channel_is_no_product_of_two_values() -> None:
    graph = Graph()
    model = graph.model(graph.op("Mul", graph.conv("x", C, 3), graph.weight(1, C, 1, 1)))
    report = so.observe(model, data())
    assert report.layers == report.others == ()


def test_moments_are_those_of_the_factor_whatever_the_batches() -> None:
    model = classifier(1)
    batches = data(4, 3)
    factor = next(node.output[0] for node in model.graph.node if node.op_type == "Sigmoid")
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    wide.graph.output.append(onnx.helper.make_empty_tensor_value_info(factor))
    values = np.concatenate([run(wide, batch)[-1].reshape(-1, C) for batch in batches]).astype(np.float64)
    for split in (
        batches,
        [np.concatenate(batches)],
        lambda: (each[:1] for batch in batches for each in np.split(batch, 3)),
    ):
        layer = so.observe(model, split, keep=5).layers[0]
        assert layer.images == 12
        np.testing.assert_allclose(layer.mean.numpy(), values.mean(0), rtol=1e-6)
        np.testing.assert_allclose(layer.within_variance.numpy(), values.var(0), rtol=1e-4)
        np.testing.assert_allclose(layer.sample.numpy(), values[:5], rtol=1e-5)


def test_classes(tmp_path: object) -> None:
    batches = [(batch, np.arange(len(batch)) + 1) for batch in data(3, 2)]
    layer = so.observe(classifier(1), batches, by_class=True).layers[0]
    assert layer.class_counts is not None
    assert layer.class_counts.tolist() == [0, 3, 3]
    assert layer.class_share is not None
    assert 0 < layer.class_share < 1
