"""ultralytics: a YOLO from its yaml, trained by its own trainer on drawn squares, resumed, folded, exported."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stripefold as sf
from stripefold.errors import CheckpointError

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "ultralytics.md"
pytestmark = pytest.mark.filterwarnings("ignore")  # of ultralytics, and of the tracer that it exports with


@pytest.fixture
def yolo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
    return pytest.importorskip("ultralytics")


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    image_library = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / part).mkdir(parents=True)
        for index in range(4):
            image = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
            x, y = (int(value) for value in rng.integers(8, 40, 2))
            image[y : y + 16, x : x + 16] = 255
            image_library.fromarray(image).save(tmp_path / "images" / part / f"{index}.png")
            words = f"0 {(x + 8) / 64} {(y + 8) / 64} 0.25 0.25\n"
            (tmp_path / "labels" / part / f"{index}.txt").write_text(words, encoding="utf-8")
    settings = f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: {{0: square}}\n"
    (tmp_path / "data.yaml").write_text(settings, encoding="utf-8")
    return tmp_path


def run(yolo: Any, model: str, folder: Path, **changes: Any) -> Any:
    from ultralytics.models.yolo.detect import DetectionTrainer

    from stripefold.integrations.ultralytics import attached_trainer

    detector = yolo.YOLO(model)
    options = {"epochs": 1, "imgsz": 64, "batch": 2, "workers": 0, "device": "cpu", "plots": False, "amp": False}
    detector.train(
        trainer=attached_trainer(DetectionTrainer, changes.pop("attention", "se")), data=str(folder / "data.yaml"),
        project=str(folder / "runs"), exist_ok=True, verbose=False, **{**options, **changes},
    )  # fmt: skip
    return detector


def boxes(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = model.eval()(x)
    return out[0] if isinstance(out, tuple) else out


def backbone(model: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().model[:10](x)


@pytest.mark.slow
def test_train_fold_export(yolo: Any, squares: Path) -> None:
    detector = run(yolo, "yolov8n.yaml", squares)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    attached = detector.model.float()
    assert sf.scales(attached)
    wanted = boxes(attached, x)
    folded = sf.fold(attached, example=x)
    torch.testing.assert_close(boxes(folded, x), wanted, rtol=1e-3, atol=1e-3)
    # Hardly trained, the boxes are those of the head's biases: what the gates do shows inside.
    features = backbone(attached, x)
    torch.testing.assert_close(backbone(folded, x), features, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(backbone(sf.detach(attached), x), features, rtol=1e-4, atol=1e-5)
    # ultralytics' own fusing of BatchNorms, which its validation and export do, on both.
    for model in (attached, folded):
        torch.testing.assert_close(boxes(copy.deepcopy(model).fuse(verbose=False), x), wanted, rtol=1e-3, atol=1e-3)
    detector.model = folded
    session = pytest.importorskip("onnxruntime")
    path = detector.export(format="onnx", imgsz=64, batch=2, simplify=False, verbose=False)
    (found,) = session.InferenceSession(path).run(None, {"images": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-3, atol=5e-3)


@pytest.mark.slow
def test_the_page_runs(yolo: Any, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block of the page as it stands, with small images and one epoch."""
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    where = f"project={str(squares / 'runs')!r}"
    small = {
        "epochs=100": f"epochs=1, imgsz=64, batch=2, workers=0, device='cpu', plots=False, amp=False, {where}",
        "640, 640": "64, 64",
        'format="onnx"': 'format="onnx", imgsz=64, simplify=False',
    }
    for large, little in small.items():
        assert large in block
        block = block.replace(large, little)
    monkeypatch.chdir(squares)
    scope: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), scope)
    assert sf.scales(scope["attached"])
    assert not sf.scales(scope["detector"].model)
    assert list(squares.rglob("*.onnx"))


@pytest.mark.slow
def test_goes_on_from_an_attached_file(yolo: Any, squares: Path) -> None:
    """A second training from the first one's file starts with its gates; without them it is refused."""
    from stripefold.integrations.ultralytics import attached_trainer

    first = run(yolo, "yolov8n.yaml", squares)
    path = str(squares / "runs" / "train" / "weights" / "last.pt")
    started = {}

    class Remember(yolo.models.yolo.detect.DetectionTrainer):
        def set_model_attributes(self) -> None:
            started.update({name: value.clone() for name, value in sf.scales(self.model).items()})
            super().set_model_attributes()

    yolo.YOLO(path).train(
        trainer=attached_trainer(Remember, "se"), data=str(squares / "data.yaml"), epochs=1, imgsz=64, batch=2,
        workers=0, device="cpu", plots=False, amp=False, project=str(squares / "more"), verbose=False,
    )  # fmt: skip
    for name, value in sf.scales(first.model).items():
        torch.testing.assert_close(started[name], value.float(), rtol=1e-2, atol=1e-2)
        assert not torch.equal(value.float(), torch.full_like(value.float(), float(value.flatten()[0])))
    with pytest.raises(CheckpointError, match="a model with other gates or classes"):
        run(yolo, path, squares, attention="eca")
