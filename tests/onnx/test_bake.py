"""The judgement: metrics, budgets, constants, the report, the written file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stripefold import onnx as so
from stripefold.errors import BakeError, ObserveError, OnnxError, VerifyError
from stripefold.onnx import write
from stripefold.onnx.data import FeedBatches, Input
from stripefold.onnx.metric import OutputAgreement, as_run
from tests.onnx.exact import run, with_outputs
from tests.onnx.nets import C, Graph, classifier, data, se_net


def labelled(model: onnx.ModelProto, batches: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images with what the network itself says about them as labels."""
    return [(batch, run(model, batch)[0].argmax(1)) for batch in data(batches, 4)]


def test_top_1_accuracy_where_there_are_labels() -> None:
    model = classifier()
    given = labelled(model)
    made, report = so.bake(model, given, threads=1)
    hits = [run(made, batch)[0].argmax(1) == labels for batch, labels in given]
    assert report.metric == "top-1 accuracy in percent"
    assert report.before == 100
    assert report.after == report.constant == 100 * float(np.mean(hits))
    assert [site.alone is not None for site in report.sites] == [True, True]


def test_other_data_for_the_metric() -> None:
    model = classifier()
    _, report = so.bake(model, data(), validation=labelled(model), threads=1)
    assert report.metric == "top-1 accuracy in percent"
    assert report.images == 6


def test_agreement_with_the_stored_outputs_where_there_are_none() -> None:
    model = classifier()
    made, report = so.bake(model, data(5), threads=1)
    same = [run(made, batch)[0].argmax(1) == run(model, batch)[0].argmax(1) for batch in data(5)]
    assert report.metric == "agreement with the original in percent"
    assert report.before == 100
    assert report.after == pytest.approx(100 * float(np.mean(same)))


def test_agreement_is_stored_and_not_run_again() -> None:
    calls: list[int] = []

    def original(feed: Any) -> list[np.ndarray]:
        calls.append(1)
        return [feed["x"]]

    batches = FeedBatches(data(3), [Input("x", np.dtype(np.float32), None)])
    judge = OutputAgreement(batches, original)
    assert len(calls) == 3
    assert judge(lambda feed: [feed["x"]]) == 1e2
    assert judge(lambda feed: [feed["x"] * 1.5]) == pytest.approx(50)
    assert judge(lambda feed: [feed["x"] * -9]) == 0
    assert judge(lambda feed: [feed["x"][..., :-1]]) == 0
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (np.eye(4)[None] * 0.9 + 0.025, np.eye(4)[None][:, ::-1] * 0.9 + 0.025, 0),  # probabilities of places
        (np.asarray([[1, 2, 3, 4]]), np.asarray([[1, 2, 3, 5]]), 75),  # whole numbers
        (np.zeros((1, 3, 2, 2)), np.zeros((1, 3, 2, 2)), 100),
        (np.asarray([[0.1, 0.9]]), np.asarray([[0.4, 0.6]]), 100),  # scores
    ],
)
def test_agreement_of_each_kind_of_output(before: np.ndarray, after: np.ndarray, expected: float) -> None:
    batches = FeedBatches(data(1, 1), [Input("x", np.dtype(np.float32), None)])
    assert OutputAgreement(batches, lambda feed: [before])(lambda feed: [after]) == pytest.approx(expected)


def test_agreement_on_data_that_are_gone() -> None:
    left = [data(1)]
    batches = FeedBatches(lambda: left.pop() if left else iter(()), [Input("x", np.dtype(np.float32), None)])
    judge = OutputAgreement(batches, lambda feed: [feed["x"]])
    with pytest.raises((BakeError, Exception), match="no batch the second time|holds no samples"):
        judge(lambda feed: [feed["x"]])


def test_a_metric_of_ones_own_and_a_budget() -> None:
    model = classifier(3)
    batches = data(4, 4)
    truth = [run(model, batch)[0] for batch in batches]

    def closeness(net: Any) -> float:
        errors = [np.abs(net(batch)[0] - before).mean() for batch, before in zip(batches, truth, strict=True)]
        return -100 * float(np.mean(errors))

    _, everything = so.bake(model, batches, metric=closeness, threads=1)
    assert everything.metric == "closeness"
    assert everything.constant is not None
    assert everything.constant < 0
    costs = sorted(-(site.alone or 0.0) for site in everything.sites)
    budget = (costs[0] + costs[1]) / 2
    made, report = so.bake(model, batches, metric=closeness, max_drop=budget, threads=1)
    assert len(report.baked) == 1
    assert report.baked[0].alone == pytest.approx(-costs[0], rel=1e-4)
    assert report.constant is not None
    assert report.constant >= -budget
    assert "over the budget: with it the metric would fall by more than" in report.kept[0].why
    assert closeness(lambda batch: run(made, batch)) == pytest.approx(report.after, rel=1e-3)


def test_no_gate_within_the_budget(tmp_path: Path) -> None:
    model = classifier()
    output = tmp_path / "no.onnx"
    made, report = so.bake(
        model, data(), metric=lambda net: -_moved(model, net), max_drop=0.0, output=output, threads=1
    )
    assert report.baked == ()
    assert report.bytes_after == report.bytes_before
    assert "nothing was written" in str(report)
    assert not (tmp_path / "no.onnx").exists()
    assert made.graph == model.graph


def _moved(model: onnx.ModelProto, net: Any) -> float:
    return float(np.abs(net({"x": data()[0]})[0] - run(model, data()[0])[0]).max() > 1e-5)


def test_each_constant_is_what_it_says() -> None:
    model = classifier(1)
    batches = data(4, 3)
    nodes = {node.op_type: node for node in model.graph.node}
    wide = with_outputs(model, nodes["Sigmoid"].output[0], nodes["Mul"].input[0])
    found = [run(wide, batch) for batch in batches]
    v = np.concatenate([each[-2] for each in found]).astype(np.float64)
    x = np.concatenate([each[-1] for each in found]).astype(np.float64)
    energy = (x**2).sum((2, 3), keepdims=True)
    expected = {
        "mean": v.mean(0),
        "energy": (v * energy).sum(0) / energy.sum(0),
        "least-squares": (v * energy).sum(0) / energy.sum(0),
    }
    errors = {kind: float(((v * x - constant * x) ** 2).sum()) for kind, constant in expected.items()}
    assert errors["least-squares"] < errors["mean"]
    conv = next(tensor for tensor in model.graph.initializer if tensor.dims == [C, C, 3, 3])
    weight = onnx.numpy_helper.to_array(conv)
    for kind, constant in expected.items():
        made, _ = so.bake(model, batches, constants=kind, threads=1)  # type: ignore[arg-type]
        folded = next(tensor for tensor in made.graph.initializer if tensor.name == conv.name)
        scaled = weight * constant.reshape(C, 1, 1, 1)
        np.testing.assert_allclose(onnx.numpy_helper.to_array(folded), scaled, rtol=2e-6)


def test_a_channel_without_energy_gets_its_mean() -> None:
    graph = Graph()
    weight = np.ones((C, 3, 1, 1), np.float32)
    weight[2] = 0
    x = graph.op("Conv", "x", graph.const(weight))
    model = graph.model(graph.conv(graph.se(x)))
    for kind in ("energy", "least-squares"):
        _, report = so.bake(model, data(), constants=kind, threads=1)  # type: ignore[arg-type]
        assert report.error <= 1e-5
    silent = graph.model(graph.conv(graph.se(x)))
    _, report = so.bake(silent, np.zeros((2, 3, 4, 4), np.float32), constants="energy", threads=1)
    assert report.sites[0].stripe_index == 1


def test_moving_channels() -> None:
    """One channel of six moves: the mean over channels hides it, these numbers do not."""
    graph = Graph()
    x = graph.conv("x", C, 3, 3)
    first = np.zeros((C, C, 1, 1), np.float32)
    first[4] = 0.5
    factor = graph.op("Sigmoid", graph.op("Conv", graph.op("GlobalAveragePool", x), graph.const(first)))
    model = graph.model(graph.conv(graph.op("Mul", x, factor)))
    _, report = so.bake(model, data(), threads=1)
    site: Any = report.sites[0]
    assert site.moving_channels == pytest.approx(1)
    assert site.largest_share == pytest.approx(1)


def test_where() -> None:
    model = classifier(2)
    names = [layer.name for layer in so.observe(model, data()).layers]
    for where in (names[1], [names[1]], lambda name: name == names[1], "*" + names[1][3:]):
        _, report = so.bake(model, data(), where=where, threads=1)
        assert [site.outcome for site in report.sites] == ["dynamic", "folded"]
    for missing, match in (("nothing*", "'nothing\\*'"), ([], "an empty list"), (lambda name: False, "the predicate")):
        with pytest.raises(BakeError, match=f"where: {match}.*selects no gate; the gates are Mul"):
            so.bake(model, data(), where=missing)


def test_the_written_file_and_the_report(tmp_path: Path) -> None:
    model = se_net()
    path, output = tmp_path / "net.onnx", tmp_path / "baked.onnx"
    onnx.save(model, path)
    made, report = so.bake(path, data(), output=output, speed=True, threads=1)
    assert onnx.load(output) == made
    assert report.path == str(output)
    assert report.bytes_after == output.stat().st_size < report.bytes_before == path.stat().st_size
    assert report.operations_after == 3 < report.operations_before == 9
    assert sorted(each.name for each in tmp_path.iterdir()) == ["baked.onnx", "net.onnx"]
    text = str(report)
    assert text.startswith("baked net.onnx: 1 of 1 gates (1 folded); constants: least-squares over 6")
    for part in ("speed: ", "checked: relative difference ", "size: ", "9 -> 3 operations"):
        assert part in text
    content = json.loads(report.save(tmp_path / "bake.json").read_text())
    assert content["sites"][0]["moving_channels"] > 0
    assert set(content["versions"]) == {"stripefold", "onnx", "onnx-ir", "onnxruntime"}
    with report.to_csv(tmp_path / "bake.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["outcome"] == "folded"
    assert float(rows[0]["largest_share"]) > 0


def test_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BakeError, match="its folder does not exist"):
        so.bake(se_net(), data(), output=tmp_path / "no" / "baked.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(BakeError, match="cannot write .*folder.onnx"):
        so.bake(se_net(), data(), output=tmp_path / "folder.onnx", threads=1)
    assert [each.name for each in tmp_path.iterdir()] == ["folder.onnx"]


def test_a_wrong_network_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in a rule of the folding ends in an error, and leaves no file."""
    from stripefold.onnx import layers

    def forgets_the_bias(context: Any, node: Any, scale: Any) -> Any:
        return layers.conv_out(context, node, scale)[:1]

    monkeypatch.setitem(layers.OUT, "Conv", forgets_the_bias)
    graph = Graph()
    model = graph.model(graph.op("Sigmoid", graph.se(graph.conv("x", C, 3, 3))))
    with pytest.raises(VerifyError, match="differs by .* of its size from the one with constant gates"):
        so.bake(model, data(), output=tmp_path / "baked.onnx", threads=1)
    assert list(tmp_path.iterdir()) == []


def test_comparison() -> None:
    one = np.asarray([[1.0, -2.0]], np.float32)

    def compared(first: Any, second: Any) -> write.Comparison:
        return write.compare(lambda feed: [second], lambda feed: [first], [lambda feed: [first]], [{}], ["y"])

    assert compared(one, one).error == 0
    assert compared(one, one * np.float32(1 + 4e-6)).error == pytest.approx(4e-6, rel=0.1)
    with pytest.raises(VerifyError, match="differs by 2.0e-05"):
        compared(one, one * np.float32(1 + 2e-5))
    with pytest.raises(VerifyError, match=r"is float32 \(2,\), and was float32 \(1, 2\)"):
        compared(one, one[0])
    with pytest.raises(VerifyError, match="differs by inf"):
        compared(np.asarray([1.0, np.nan]), np.asarray([1.0, 2.0]))
    same = np.asarray([np.inf, np.nan, 1.0])
    assert compared(same, same).error == 0
    assert compared(np.zeros((0, 3)), np.zeros((0, 3))).error == 0
    with pytest.raises(VerifyError, match="of the output 'y' are other numbers"):
        compared(np.arange(4), np.arange(4) + 1)


def test_what_would_change_the_interface_is_refused() -> None:
    from stripefold.onnx.read import read_network

    network = read_network(se_net())
    model = network.model()
    model.graph.inputs[0].name = "renamed"
    with pytest.raises(BakeError, match="baking would change its inputs"):
        write.to_proto(model, network)
    model = network.model()
    model.graph.remove(model.graph[0])
    with pytest.raises(BakeError, match="what was baked is no valid ONNX model"):
        write.to_proto(model, network)


def test_a_network_too_large_for_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from stripefold.onnx.read import read_network

    network = read_network(se_net())
    monkeypatch.setattr(write, "MOST_BYTES", 10)
    with pytest.raises(BakeError, match="more than 2 GiB"):
        write.to_proto(network.model(), network)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"constants": "median"}, "constants='median': choose one of 'mean', 'energy', 'least-squares'"),
        ({"max_drop": float("nan")}, "max_drop=nan: give a finite number"),
        ({"max_drop": True}, "max_drop=True"),
        ({"metric": 3}, "metric is int: give a function"),
        ({"metric": len, "validation": []}, "metric= and validation= are both given"),
        ({"max_images": 0}, "max_images=0: expected a whole number from 1"),
        ({"threads": -1}, "threads=-1"),
        ({"metric": lambda net: "good"}, "the metric gives 'good' as given: it must be a finite number"),
        ({"metric": lambda net: float("inf")}, "the metric gives inf"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(BakeError, match=match):
        so.bake(se_net(), data(), **options)


def test_labels_that_do_not_fit() -> None:
    batch = data(1)[0]
    with pytest.raises(BakeError, match=r"the first output has the shape \(2, 4, 8, 10\), no scores"):
        so.bake(se_net(), [(batch, np.zeros(2, int))], threads=1)
    with pytest.raises(BakeError, match="has the label 9, and the network 4 classes"):
        so.bake(classifier(), [(batch, np.full(2, 9))], threads=1)
    with pytest.raises(BakeError, match="batch 1 has no labels, and the first one has"):
        so.bake(classifier(), [(batch, np.zeros(2, int)), batch], threads=1)


@pytest.mark.parametrize(("options", "match"), [({"keep": -1}, "keep=-1"), ({"max_images": 1.5}, "max_images=1.5")])
def test_bad_options_of_observe(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ObserveError, match=match):
        so.observe(se_net(), data(), **options)


def test_observe_refuses() -> None:
    with pytest.raises(ObserveError, match="by_class needs labels, and batch 0 has none"):
        so.observe(se_net(), data(), by_class=True)
    with pytest.raises(ObserveError, match="has values that are not finite"):
        so.observe(se_net(), np.full((2, 3, 4, 4), np.nan, np.float32))


def test_a_gate_that_changes_its_shape() -> None:
    """Channels that are tokens after all: another length, and the gate is no gate."""
    graph = Graph()
    x = graph.op("Transpose", "x", perm=[0, 2, 1])
    x = graph.op("Transpose", graph.op("MatMul", x, graph.weight(5, 4)), perm=[0, 2, 1])
    pooled = graph.op("ReduceMean", "x", axes=[1], keepdims=1)
    factor = graph.op("Sigmoid", pooled)
    model = graph.model(graph.op("Conv", graph.op("Mul", "x", factor), graph.weight(2, 5, 1)), x, shape=("N", 5, "L"))
    report = so.observe(model, data(shape=(5, 7)))
    assert report.layers == ()


def test_progress() -> None:
    told: list[tuple[str, int, int]] = []
    seen: list[int] = []
    so.observe(classifier(), data(), progress=seen.append)
    so.bake(classifier(), data(), max_drop=100, threads=1, progress=lambda *words: told.append(words))
    assert seen == [2, 4, 6]
    assert ("images", 6, 0) in told
    assert ("each gate alone", 2, 2) in told
    assert ("gates together", 2, 2) in told


def test_prices_are_not_measured_where_nobody_asks() -> None:
    _, report = so.bake(classifier(), data(), price=False, threads=1)
    assert [site.alone for site in report.sites] == [None, None]


def test_a_metric_may_call_by_name_or_with_the_array() -> None:
    call = as_run(lambda feed: [feed["x"]], ["x"])
    array = data(1)[0]
    assert call({"x": array})[0] is array
    np.testing.assert_array_equal(call(array)[0], array)  # type: ignore[arg-type]


def test_errors_of_the_file_come_first() -> None:
    with pytest.raises(OnnxError, match="expected an ONNX file"):
        so.bake(None, data())  # type: ignore[arg-type]
