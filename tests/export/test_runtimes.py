"""The folded file in other runtimes, where they are installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import stripefold as sf
from stripefold.asr.gate import StaticGate
from stripefold.export import export_model
from stripefold.export.session import OnnxModel
from stripefold_lab.models import create_model


def _gap(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:openvino")
@pytest.mark.parametrize("name", ["resnet8", "timm/resnet10t", "timm/mobilenetv3_small_050"])
def test_openvino_runs_the_folded_file(name: str, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra integrations")
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    images = torch.randn(3, 3, 64, 64, generator=generator)
    model = sf.attach(create_model(name, image_size=64), "se", example=images).eval()
    for module in model.modules():
        if isinstance(module, StaticGate):
            module.psi.data.normal_(generator=generator)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
    export_model(model, tmp_path / "net.onnx", example=images)
    openvino.save_model(openvino.convert_model(tmp_path / "net.onnx"), tmp_path / "net.xml", compress_to_fp16=False)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    with torch.no_grad():
        truth, bare = model(images).numpy(), sf.detach(model)(images).numpy()
    assert _gap(OnnxModel(tmp_path / "net.onnx")(images)[0].numpy(), truth) < 1e-4
    for file in ("net.onnx", "net.xml"):
        network = openvino.compile_model(tmp_path / file, "CPU", exact)
        for batch in (3, 1):
            assert _gap(network(images[:batch].numpy())[0], truth[:batch]) < 1e-4
    assert _gap(bare, truth) > 1e-2  # what a file without the gates would have
