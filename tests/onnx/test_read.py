"""Files that are damaged, hostile or of another kind: one clear error each, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from stripefold import onnx as so
from stripefold.errors import OnnxError
from stripefold.onnx.read import read_network
from tests.onnx.exact import run
from tests.onnx.nets import C, Graph, data, kinds, se_net


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3])


def refused(model: onnx.ModelProto | bytes | str | Path, match: str) -> None:
    with pytest.raises(OnnxError, match=match) as caught:
        read_network(model)
    assert "\n" not in str(caught.value)


def test_every_kind_of_source(tmp_path: Path) -> None:
    model = se_net()
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    for source in (path, str(path), path.read_bytes(), model, ir.from_proto(model)):
        assert read_network(source).proto.graph.node == model.graph.node
    assert read_network(path).bytes == path.stat().st_size
    assert read_network(path).name == "net.onnx"


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "missing.onnx", "cannot read .*No such file")
    refused(tmp_path, "cannot read .*directory")
    refused(3, "expected an ONNX file or model, got int")  # type: ignore[arg-type]


def test_damaged_files(tmp_path: Path) -> None:
    content = se_net().SerializeToString()
    refused(b"no onnx at all, but some text", "damaged or cut off")
    refused(content[: len(content) // 2], "damaged or cut off|holds no operations|no valid ONNX model|claims|bytes")
    (tmp_path / "empty.onnx").write_bytes(b"")
    refused(tmp_path / "empty.onnx", "holds no operations")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9, 0.99])
def test_cut_off_anywhere(share: float) -> None:
    content = se_net().SerializeToString()
    with pytest.raises(OnnxError):
        read_network(content[: int(share * len(content))])


def test_bytes_changed_at_random() -> None:
    """Whatever the damage: an error of ours, or a network that can be read."""
    content, rng, errors = se_net().SerializeToString(), np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=2):
            damaged[place] = rng.integers(256)
        try:
            read_network(bytes(damaged))
        except OnnxError:
            errors += 1
    assert errors > 100


def test_names_that_are_no_text() -> None:
    content = se_net().SerializeToString()
    place = content.index(b"\x22\x11GlobalAveragePool") + 2  # the kind, not the name
    refused(content[:place] + b"\xff" + content[place + 1 :], "no text")


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31 + 5)  # takes no room on the disk
    refused(path, "more than an ONNX file can have")


def changed(change: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    model = se_net()
    change(model)
    return model


def test_tensors_that_lie() -> None:
    def huge(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[:] = [10**6, 10**6]

    def short(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].raw_data = b"12"

    def negative(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[0] = -1

    def nothing(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].ClearField("raw_data")

    def unknown(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].data_type = 999

    refused(changed(huge), "claims 1000000000000 values")
    refused(changed(short), "has 2 bytes, .* expected")
    refused(changed(negative), "negative size")
    refused(changed(nothing), "claims .* values and holds none")
    refused(changed(unknown), "unknown type 999")


def test_tensors_that_are_made_to_fill_the_memory() -> None:
    for kind, place in (("ConstantOfShape", 0), ("Expand", 1)):
        for constant in (True, False):
            graph = Graph(constants=constant)
            sizes = graph.const(np.asarray([2**20, 2**20], np.int64))
            made = graph.op(kind, *(("x", sizes) if place else (sizes,)))
            refused(graph.model(graph.op("Add", "x", made), shape=(1,)), "would make 1099511627776 values")


def test_cycles_and_missing_values() -> None:
    nodes = [
        helper.make_node("Relu", ["b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "net", [value("x")], [value("b")]))
    refused(model, "a cycle, or an input that nothing computes")
    nodes = [helper.make_node("Relu", ["nothing"], ["b"])]
    refused(helper.make_model(helper.make_graph(nodes, "net", [value("x")], [value("b")])), "a cycle, or an input")


def test_an_operation_that_does_not_exist() -> None:
    nodes = [helper.make_node("Wobble", ["x"], ["b"])]
    refused(helper.make_model(helper.make_graph(nodes, "net", [value("x")], [value("b")])), "no valid ONNX model")


def test_one_that_the_runtime_does_not_know() -> None:
    nodes = [helper.make_node("Wobble", ["x"], ["b"], domain="somebodys")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("somebodys", 1)]
    graph = helper.make_graph(nodes, "net", [value("x")], [value("b")])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    with pytest.raises(OnnxError, match="onnxruntime cannot run net: .*Wobble"):
        so.observe(model, np.zeros((2, 3), np.float32))


def test_an_input_that_the_network_does_not_take() -> None:
    graph = Graph()
    model = graph.model(graph.conv(graph.se(graph.conv("x", C, 3, 3))), shape=("N", "C", "H", "W"))
    with pytest.raises(OnnxError, match=r"net fails on x \(2, 4, 8, 10\)"):
        so.observe(model, np.zeros((2, 4, 8, 10), np.float32))


@pytest.mark.parametrize("kind", ["If", "Loop"])
def test_control_flow(kind: str) -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "inner", [], [value("y")])
    if kind == "Loop":
        given = [
            helper.make_tensor_value_info(n, k, []) for n, k in (("i", TensorProto.INT64), ("c", TensorProto.BOOL))
        ]
        step = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Relu", ["x"], ["y"])]
        done = helper.make_tensor_value_info("d", TensorProto.BOOL, [])
        inner = helper.make_graph(step, "inner", given, [done, value("y")])
        node = helper.make_node("Loop", ["n", ""], ["b"], body=inner, name="again")
    else:
        node = helper.make_node("If", ["n"], ["b"], then_branch=inner, else_branch=inner, name="again")
    start = numpy_helper.from_array(np.asarray(True if kind == "If" else 3), "n")
    output = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "net", [value("x")], [output], [start])
    refused(helper.make_model(graph, ir_version=9), f"control flow .{kind} 'again'")


@pytest.mark.parametrize("kind", ["QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "MatMulInteger"])
def test_quantised(kind: str) -> None:
    nodes = [helper.make_node(kind, ["x"], ["b"], name="small")]
    refused(
        helper.make_model(helper.make_graph(nodes, "net", [value("x")], [value("b")])), f"quantised .{kind} 'small'"
    )


def test_sparse_weights_and_training_graphs() -> None:
    model = se_net()
    model.training_info.add()
    refused(model, "training graphs")
    model = se_net()
    values, indices = (
        numpy_helper.from_array(np.asarray([1.0], np.float32), "s"),
        numpy_helper.from_array(np.asarray([0]), "i"),
    )
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    refused(model, "sparse weights")


def external(folder: Path) -> Path:
    model = se_net()
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def test_external_data_in_the_folder(tmp_path: Path) -> None:
    path = external(tmp_path)
    assert read_network(path).bytes == sum(each.stat().st_size for each in tmp_path.iterdir())
    output = tmp_path / "baked.onnx"
    made, report = so.bake(path, data(), output=output, threads=1)
    assert report.baked
    np.testing.assert_array_equal(run(onnx.load(output), data()[0])[0], run(made, data()[0])[0])


def test_external_data_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    path = external(folder)
    secret = tmp_path / "secret.bin"
    secret.write_bytes((folder / "weights.bin").read_bytes())

    def at(location: str) -> Path:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        onnx.save(model, folder / "other.onnx")
        return folder / "other.onnx"

    refused(at("../secret.bin"), "outside the model's folder")
    refused(at(str(secret)), "outside the model's folder")
    refused(at(""), "outside the model's folder|in no readable way")
    (folder / "link.bin").symlink_to(secret)
    refused(at("link.bin"), "outside the model's folder")
    refused(at("missing.bin"), "No such file")
    (folder / "short.bin").write_bytes(b"1234")
    refused(at("short.bin"), "is too short")


def test_external_data_that_lies(tmp_path: Path) -> None:
    path = external(tmp_path)
    for key, wrong, match in (
        ("length", "3", "3 bytes at"),
        ("offset", "-8", "at -8|no readable way"),
        ("offset", "x", "in no readable way"),
    ):
        model = onnx.load(path, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == key:
                entry.value = wrong
        if key not in {entry.key for entry in model.graph.initializer[0].external_data}:
            model.graph.initializer[0].external_data.add(key=key, value=wrong)
        onnx.save(model, tmp_path / "other.onnx")
        refused(tmp_path / "other.onnx", match)
    refused(onnx.load(path, load_external_data=False), "lies in another file")


def _function(name: str, *calls: str) -> onnx.FunctionProto:
    nodes, before = [], "a"
    for index, call in enumerate(calls):
        domain = "" if call == "Relu" else "mine"
        nodes.append(helper.make_node(call, [before], [f"v{index}"], domain=domain))
        before = f"v{index}"
    nodes.append(helper.make_node("Identity", [before], ["b"]))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_function("mine", name, ["a"], ["b"], nodes, opsets)


def with_functions(*functions: onnx.FunctionProto, call: str) -> onnx.ModelProto:
    model = se_net()
    model.functions.extend(functions)
    model.opset_import.add(domain="mine", version=1)
    last = model.graph.node[-1]
    last.input[0], given = "called", last.input[0]
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node(call, [given], ["called"], domain="mine"))
    return model


def test_functions_are_written_out() -> None:
    model = with_functions(_function("Twice", "Relu", "Relu"), _function("Outer", "Twice"), call="Outer")
    made, report = so.bake(model, data(), threads=1)
    assert [site.outcome for site in report.sites] == ["folded"]
    assert not made.functions
    assert kinds(made).count("Relu") == 2
    assert report.error <= 1e-5


def test_functions_that_never_end_or_explode() -> None:
    refused(with_functions(_function("Again", "Again"), call="Again"), "calls itself: 'Again'")
    layers = [_function("F0", *["Relu"] * 10)]
    layers += [_function(f"F{i}", *[f"F{i - 1}"] * 10) for i in range(1, 8)]
    refused(with_functions(*layers, call="F7"), "operations without its functions")


def test_a_network_without_attention() -> None:
    from stripefold.errors import BakeError

    graph = Graph()
    model = graph.model(graph.conv("x", C, 3))
    assert so.observe(model, data()).layers == ()
    with pytest.raises(BakeError, match="net has no channel attention that depends on the data"):
        so.bake(model, data())


def test_no_torch_is_needed_to_bake() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None; import stripefold.onnx as so; "
        "from tests.onnx.nets import data, se_net; print(len(so.bake(se_net(), data(), threads=1)[1].baked))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.stdout.strip() == "1", done.stderr
