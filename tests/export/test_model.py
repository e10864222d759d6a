"""export_model: files that compute what the model computes, in a process without stripefold, or no file at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import ExportError, TraceError, VerifyError
from stripefold.export import export_model
from stripefold.export import write as writing
from stripefold.export.program import KEY
from stripefold.folding.weight_files import file_info
from tests.lifecycle import IMAGE_DEPENDENCE, TinyNet, assert_refused, attached, error, images, snapshot, tiny

PROGRAMS = ["net.pt2", "net.onnx"]
FLOAT32 = torch.float32

# Run in a process of its own, in which importing stripefold is an error.
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "stripefold":
            raise ImportError(name)

sys.meta_path.insert(0, Blocker())
import torch
x = torch.load(sys.argv[2], weights_only=True)
path = sys.argv[1]
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    y = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
elif path.endswith(".aot.pt2"):
    y = torch._inductor.aoti_load_package(path)(x)
else:
    y = torch.export.load(path).module()(x)
assert "stripefold" not in sys.modules
torch.save(y.detach(), sys.argv[3])
"""


def run_elsewhere(path: Path, x: Tensor) -> Tensor:
    given, result = path.with_suffix(".in"), path.with_suffix(".out")
    torch.save(x, given)
    command = [sys.executable, "-W", "ignore", "-c", BLOCKED, str(path), str(given), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(result, weights_only=True)


def answer(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_without_stripefold_at_any_batch(name: str, tmp_path: Path) -> None:
    model = attached(dtype=FLOAT32)
    before = snapshot(model)
    report = export_model(model, tmp_path / name, inputs=images(5, FLOAT32, seed=9))
    assert snapshot(model) == before
    assert [check.inputs for check in report.outcome.checks] == [
        "noise, batch 1", "noise, batch 3", "given input, batch 1", "given input, batch 5",
    ]  # fmt: skip
    x = images(7, FLOAT32, seed=4)
    truth, found = answer(sf.fold(model).double(), x.double()), run_elsewhere(tmp_path / name, x)
    assert error(found, truth) <= 1e-5
    assert error(truth[:1].expand_as(truth), truth) > IMAGE_DEPENDENCE
    assert error(found, answer(sf.detach(model), x)) > IMAGE_DEPENDENCE  # the gates are in the file
    assert len(report.folding.folded) == 6  # two gates, four BatchNorms
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.slow
def test_a_compiled_program(tmp_path: Path) -> None:
    model = attached(dtype=FLOAT32)
    path = tmp_path / "net.aot.pt2"
    try:
        report = export_model(model, path, compiled=True, channels_last=True)
    except ExportError as reason:
        if "C++ compiler" not in str(reason):
            raise
        pytest.skip(str(reason))
    assert report.form == "aot"
    x = images(6, FLOAT32)
    assert error(run_elsewhere(path, x), answer(sf.fold(model), x)) <= 1e-5


def test_channels_last_takes_either_layout(tmp_path: Path) -> None:
    model = attached(dtype=FLOAT32)
    export_model(model, tmp_path / "net.pt2", channels_last=True)
    program = torch.export.load(tmp_path / "net.pt2").module()
    weights = [parameter for parameter in program.parameters() if parameter.dim() == 4 and parameter.shape[2] > 1]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    x, truth = images(3, FLOAT32), answer(sf.fold(model), images(3, FLOAT32))
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        assert error(program(given), truth) <= 1e-5


def test_a_fixed_batch(tmp_path: Path) -> None:
    model = attached(dtype=FLOAT32)
    report = export_model(model, tmp_path / "net.pt2", example=images(4, FLOAT32), dynamic_batch=False)
    assert report.about["batch"] == 4
    assert [check.inputs for check in report.outcome.checks] == ["noise, batch 4"]
    program = torch.export.load(tmp_path / "net.pt2").module()
    program(images(4, FLOAT32))
    with pytest.raises((RuntimeError, AssertionError)):
        program(images(5, FLOAT32))


def test_float64_is_exact(tmp_path: Path) -> None:
    report = export_model(attached(), tmp_path / "net.pt2")
    assert {check.tolerance for check in report.outcome.checks} == {1e-10}


def test_weights_load_into_the_stock_class(tmp_path: Path) -> None:
    model = attached(dtype=FLOAT32)
    report = export_model(model, tmp_path / "net.safetensors", extra={"run": 7})
    stock = TinyNet()
    sf.load_model_(stock, tmp_path / "net.safetensors")
    x = images(4, FLOAT32)
    assert torch.equal(answer(stock, x), answer(sf.fold(model), x))
    assert report.about["kind"] == "folded"
    assert report.about["extra"] == {"run": 7}
    assert "the same bit for bit" in str(report)


def test_fused_weights_say_so(tmp_path: Path) -> None:
    model = attached(dtype=FLOAT32)
    export_model(model, tmp_path / "net.safetensors", fuse=True)
    assert file_info(tmp_path / "net.safetensors").kind == "fused"
    again = sf.fold(tiny(FLOAT32, seed=5), fuse=True)
    sf.load_model_(again, tmp_path / "net.safetensors")
    assert error(answer(again, images(4, FLOAT32)), answer(sf.fold(model), images(4, FLOAT32))) <= 1e-5


def test_a_plain_model_is_plain(tmp_path: Path) -> None:
    assert export_model(tiny(FLOAT32), tmp_path / "net.safetensors").about["kind"] == "plain"


def test_files_say_what_they_are_and_nothing_about_this_machine(tmp_path: Path) -> None:
    import onnx

    model = attached(dtype=FLOAT32)
    for name in PROGRAMS:
        export_model(model, tmp_path / name, check=False, extra={"classes": ["a"]})
        content = (tmp_path / name).read_bytes()
        assert str(Path(__file__).parent).encode() not in content
    texts = {f"{KEY}.json": ""}
    torch.export.load(tmp_path / "net.pt2", extra_files=texts)
    properties = {each.key: each.value for each in onnx.load(tmp_path / "net.onnx").metadata_props}
    for text in (texts[f"{KEY}.json"], properties[KEY]):
        about = json.loads(text)
        assert about["kind"] == "fused"
        assert about["batch"] == "dynamic"
        assert about["extra"] == {"classes": ["a"]}
        assert about["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_wrong_file_never_appears(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(b"what was there before")
    other = export_model.__globals__["capture"]

    def capture_something_else(model: nn.Module, *args: Any, **options: Any) -> Any:
        changed = sf.fold(model, check=False)
        with torch.no_grad():
            changed.head.weight.mul_(1.001)
        return other(changed, *args, **options)

    monkeypatch.setitem(export_model.__globals__, "capture", capture_something_else)
    model = attached(dtype=FLOAT32)
    match = "computes something else than the model: on .*No file was written"
    assert_refused(model, lambda: export_model(model, tmp_path / name), VerifyError, match)
    assert (tmp_path / name).read_bytes() == b"what was there before"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_numbers_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = writing.load_tensors
    monkeypatch.setattr(writing, "load_tensors", lambda path: {k: v + 1 for k, v in read(path).items()})
    with pytest.raises(VerifyError, match="reads back as other numbers"):
        export_model(tiny(FLOAT32), tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


class Noisy(nn.Module):
    """Scores, and beside them what rounding turns over completely."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 50)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return y, (y * 1e8).sin()


def test_a_noisy_output_excuses_no_other() -> None:
    from stripefold.export.check import check_file

    torch.manual_seed(0)
    model, x = Noisy(), {"noise": torch.randn(16, 8)}
    check_file(model, model, x)
    with pytest.raises(VerifyError, match=r"something else than the model: on noise: .* \(allowed 1.00e-06"):
        check_file(lambda x: (1.001 * model.linear(x), model(x)[1]), model, x)


def test_a_file_of_another_shape_of_output(tmp_path: Path) -> None:
    from stripefold.export.check import check_file

    with pytest.raises(VerifyError, match="returns 2 tensors and the model 1"):
        check_file(lambda x: (x, x), tiny(), {"noise": images()})


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("net.bin", {}, r"must end in \.safetensors, \.pt2, \.onnx"),
        ("nowhere/net.pt2", {}, "there is no folder"),
        ("net.onnx", {"channels_last": True}, r"channels_last is an option of \.pt2 files: ONNX knows"),
        ("net.safetensors", {"compiled": True}, r"compiled is an option of \.pt2 files: a weights file"),
    ],
)
def test_refused(name: str, options: dict[str, Any], match: str, tmp_path: Path) -> None:
    model = attached(dtype=FLOAT32)
    assert_refused(model, lambda: export_model(model, tmp_path / name, **options), ExportError, match)
    assert list(tmp_path.iterdir()) == []


def test_no_example(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Sequential does not say what it takes: give example="):
        export_model(nn.Sequential(nn.Conv2d(3, 4, 1)), tmp_path / "net.pt2")


def test_weights_need_no_example(tmp_path: Path) -> None:
    layer = nn.Sequential(nn.Conv2d(3, 4, 1))
    report = export_model(layer, tmp_path / "net.safetensors")
    assert report.about["kind"] == "plain"


class FixedBatch(TinyNet):
    """Its code writes the batch size down."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 2:
            raise ValueError("two at most")
        return super().forward(x)


class ByValue(TinyNet):
    """What it does depends on the numbers in the image, which no program can record."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.sum() > 0 else 2 * y


def test_what_torch_cannot_capture(tmp_path: Path) -> None:
    x = images(2, FLOAT32)
    with pytest.raises(ExportError, match="cannot capture FixedBatch on .* dynamic_batch=False fixes the batch size"):
        export_model(FixedBatch(), tmp_path / "net.pt2", example=x)
    export_model(FixedBatch(), tmp_path / "net.pt2", example=x, dynamic_batch=False)
    with pytest.raises(ExportError, match="cannot capture ByValue"):
        export_model(ByValue(), tmp_path / "value.pt2", example=x, dynamic_batch=False)
    assert not (tmp_path / "value.pt2").exists()


def test_dynamic_attention_stays_in_programs_and_is_refused_in_fused_weights(tmp_path: Path) -> None:
    model = attached(dtype=FLOAT32)
    sf.attach_(model, "se", form="dynamic")
    report = export_model(model, tmp_path / "net.pt2")
    assert report.about["kind"] == "attached"
    x = images(3, FLOAT32)
    assert error(torch.export.load(tmp_path / "net.pt2").module()(x), answer(model, x)) <= 1e-5
    with pytest.raises(ExportError, match="keeps its dynamic attention"):
        export_model(model, tmp_path / "net.safetensors", fuse=True)
    assert export_model(model, tmp_path / "net.safetensors").about["kind"] == "attached"


def test_too_large_for_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stripefold.export import program

    monkeypatch.setattr(program, "ONNX_LIMIT", 100)
    with pytest.raises(ExportError, match=r"do not fit into an ONNX file \(2 GiB\): write \.pt2"):
        export_model(attached(dtype=FLOAT32), tmp_path / "net.onnx")


def test_what_onnx_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no operator for it\nmore lines")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(
        ExportError, match="torch.onnx cannot write this model: RuntimeError: no operator for it. Write"
    ):
        export_model(attached(dtype=FLOAT32), tmp_path / "net.onnx")


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = attached(dtype=FLOAT32)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"onnxruntime is not installed: pip install 'stripefold\[export\]'"):
        export_model(model, tmp_path / "net.onnx")

    def lacking(*_: Any, **__: Any) -> None:
        raise ImportError("No module named 'onnxscript'")

    monkeypatch.setattr(torch.onnx, "export", lacking)
    with pytest.raises(ExportError, match=r"ONNX needs more packages .*onnxscript.*stripefold\[export\]"):
        export_model(model, tmp_path / "net.onnx")


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("g++ not found")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(ExportError, match="cannot be compiled ahead of time: RuntimeError: g.. not found"):
        export_model(attached(dtype=FLOAT32), tmp_path / "net.pt2", compiled=True)
    assert list(tmp_path.iterdir()) == []


class Declared(nn.Module):
    """Says one size and takes another."""

    def __init__(self, declared: int, taken: int) -> None:
        super().__init__()
        self.input_size = (3, declared, declared)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * taken * taken, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).flatten(1))


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2", "net.safetensors"])
def test_another_size_than_the_declared_one_is_given_as_an_example(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Declared(8, 12)
    with pytest.raises(ExportError, match=r"Declared does not run on .*3, 8, 8.*, the size that it declares: give ex"):
        export_model(model, tmp_path / name)
    assert not list(tmp_path.iterdir())
    assert export_model(model, tmp_path / name, example=torch.randn(2, 3, 12, 12)).path.is_file()
    # The control: what somebody gave is not called the model's own.
    with pytest.raises((TraceError, VerifyError), match="8, 8") as caught:
        export_model(model, tmp_path / name, example=torch.randn(2, 3, 8, 8))
    assert "declares" not in str(caught.value)
