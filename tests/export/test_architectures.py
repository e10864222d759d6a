"""ONNX and .pt2 of whole architectures agree with the model that was trained: ours, timm's and torchvision's.

Three run with every suite; `pytest -m zoo tests/export` runs the others.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import stripefold as sf
from stripefold.export import export_model
from stripefold.export.session import OnnxModel
from stripefold_lab.models import create_model
from tests.lifecycle import IMAGE_DEPENDENCE, error
from tests.zoo.prepare import Randomness, jitter_, randomise_, randomise_gates_, statistics_of_the_last_batch

SAMPLE = {"resnet20": 32, "timm/regnety_002": 64, "torchvision/mobilenet_v3_small": 64}
OTHERS = {
    "resnet164": 32,
    "timm/resnet50": 64,
    "timm/convnext_tiny": 64,
    "timm/mobilenetv3_large_100": 64,
    "timm/efficientnet_b0": 64,
    "timm/vit_tiny_patch16_224": 64,
    "timm/swin_tiny_patch4_window7_224": 224,
    "timm/fastvit_t8": 64,
    "torchvision/densenet121": 64,
    "torchvision/shufflenet_v2_x1_0": 64,
}
CASES = [pytest.param(name, size, marks=pytest.mark.slow) for name, size in SAMPLE.items()]
CASES += [pytest.param(name, size, marks=pytest.mark.zoo) for name, size in OTHERS.items()]


def prepared(name: str, size: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """An attached model whose every number is random, its statistics calibrated and jittered; and images."""
    randomness = Randomness(seed=0, gain=0.7)
    torch.manual_seed(0)
    model, x = create_model(name, num_classes=7, image_size=size), torch.randn(8, 3, size, size)
    randomise_(model, randomness)
    # Where the trace finds no residual branch (ShuffleNet, DenseNet), the normalisations.
    where = "residual" if sf.sites(model, example=x[:1]).names else "norm"
    sf.attach_(model, "se", where=where, example=x[:1])
    randomise_gates_(model, randomness)
    with statistics_of_the_last_batch(model), torch.no_grad():
        model.train()(x)
    jitter_(model, randomness)
    return model.eval(), x


@pytest.mark.parametrize(("name", "size"), CASES)
def test_files_agree_with_the_trained_model(name: str, size: int, tmp_path: Path) -> None:
    model, x = prepared(name, size)
    with torch.no_grad():
        truth = model.double()(x.double())
        control = sf.detach(model)(x.double())
    model.float()
    assert error(truth[:1].expand_as(truth), truth) > 1e-3
    for suffix in ("onnx", "pt2"):
        path = tmp_path / f"net.{suffix}"
        report = export_model(model, path, example=x[:2], inputs=x[:5])
        assert len(report.outcome.checks) == 4
        found = OnnxModel(path)(x)[0] if suffix == "onnx" else torch.export.load(path).module()(x).detach()
        difference = error(found, truth)
        # The file's own checks hold it to four times the rounding of the model; these see that it is the right model.
        assert difference <= 100 * max(check.tolerance for check in report.outcome.checks)
        assert error(control, truth) > max(IMAGE_DEPENDENCE, 10 * difference)
