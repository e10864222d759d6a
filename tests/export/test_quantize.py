"""int8: calibrated, smaller, nearly as right, and refused in words; a session takes what the model takes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import ExportError
from stripefold.export import export_model, quantize_int8
from stripefold.export.session import OnnxModel
from tests.lifecycle import attached, images, prepared

FLOAT32 = torch.float32


class Wide(nn.Module):
    """Enough weights for int8 to show in the size of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size = (3, 12, 12)
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 3, stride=2, bias=False), nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().amax((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = sf.attach_(prepared(Wide(), torch.randn(16, 3, 12, 12)), "se", where="norm")
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    export_model(model, path)
    return model, path


def batches(count: int = 4, seed: int = 2) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(16, 3, 12, 12, generator=generator)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_int8(method: str, exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    import onnx

    model, path = exported
    plain = sf.fold(model).eval()
    with torch.no_grad():
        test = [(x, plain(x).argmax(1)) for x in batches(seed=7)]
    assert len({int(label) for _, labels in test for label in labels}) > 1
    report = quantize_int8(path, tmp_path / "net.int8.onnx", batches(), test=test, method=method)
    assert report.calibration_images == 64
    assert report.images == 64
    assert report.float_accuracy == 1.0
    assert report.int8_accuracy == report.agreement
    assert report.agreement > 0.9
    assert report.int8_bytes < 0.5 * report.float_bytes
    assert "100.00% -> " in str(report)
    weights = {each.name: each for each in onnx.load(tmp_path / "net.int8.onnx").graph.initializer}
    scales = [each for name, each in weights.items() if name.endswith("_scale") and list(each.dims) == [64]]
    assert scales  # one per channel
    exact, rounded = OnnxModel(path)(test[0][0])[0], OnnxModel(report.path)(test[0][0])[0]
    assert 0 < float((exact - rounded).abs().max() / exact.abs().max()) < 0.1


def test_pairs_serve_as_calibration_and_no_test_is_no_accuracy(
    exported: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    pairs = ((x, torch.zeros(16)) for x in batches(1))
    report = quantize_int8(exported[1], tmp_path / "x.onnx", pairs, reduce_range=True)
    assert report.calibration_images == 16
    assert report.float_accuracy is None
    assert "accuracy" not in str(report)
    assert logging.root.manager.disable == 0


def test_without_images(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no calibration images"):
        quantize_int8(exported[1], tmp_path / "x.onnx", [])
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_size(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="onnxruntime cannot quantise .*net.onnx"):
        quantize_int8(exported[1], tmp_path / "x.onnx", [torch.randn(2, 3, 9, 9)])
    assert list(tmp_path.iterdir()) == []


def test_unknown_method(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="method='best' is unknown: choose one of minmax, entropy, percentile"):
        quantize_int8(exported[1], tmp_path / "x.onnx", batches(), method="best")


class TwoInputs(nn.Module):
    """Adds what it gets, under names."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"sum": self.fc(x) + y, "first": self.fc(x)}


@pytest.mark.parametrize("keywords", [True, False])
def test_several_inputs_and_outputs(keywords: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    example = {"x": x, "y": y} if keywords else (x, y)
    model, path = TwoInputs(), tmp_path / "two.onnx"
    report = export_model(model, path, example=example)
    assert len(report.outcome.checks) == 2
    found = OnnxModel(path)(example)
    assert torch.allclose(found[0], model(x, y)["sum"], atol=1e-6)
    assert torch.allclose(found[1], model(x, y)["first"], atol=1e-6)
    with pytest.raises(ExportError, match=r"takes \['x', 'y'\], and the example holds 1 tensors"):
        OnnxModel(path)(x)
    with pytest.raises(ExportError, match="int8 calibration here is for models of one image input"):
        quantize_int8(path, tmp_path / "int8.onnx", [x])


def test_a_session_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"onnxruntime cannot run no\.onnx: .*Load model from it failed"):
        OnnxModel(tmp_path / "no.onnx")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ExportError, match="has no CUDAExecutionProvider"):
            OnnxModel(tmp_path / "no.onnx", device="cuda")


def test_float64_needs_another_runtime(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"cannot run net\.onnx: .* It computes float32 networks; call model\.float\(\) first"
    ):
        export_model(attached(), tmp_path / "net.onnx", example=images())
    assert list(tmp_path.iterdir()) == []


def test_int8_without_its_packages(
    exported: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime.quantization.shape_inference", None)
    with pytest.raises(ExportError, match=r"int8 needs more packages .*stripefold\[export\]"):
        quantize_int8(exported[1], tmp_path / "x.onnx", batches())
