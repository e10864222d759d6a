"""Segmentation and detection through train, eval, fold and resume: they learn, they fold, they are measured rightly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import stripefold as sf
from stripefold.errors import ConfigError, VerifyError
from stripefold_lab.datasets import Shapes
from stripefold_lab.datasets.write import write_coco, write_voc
from stripefold_lab.training import TrainConfig, evaluate, load_config, recipe_names, train
from stripefold_lab.training.agreement import DetectorReport, verify_detector
from stripefold_lab.training.boxes import BoxMeter
from stripefold_lab.training.build import build_model
from stripefold_lab.training.class_maps import PixelMeter, pixel_loss
from stripefold_lab.training.data import ImageSpec, load_data
from stripefold_lab.training.labels import mix
from stripefold_lab.training.loading import load_run
from stripefold_lab.training.results import EvalResult
from stripefold_lab.training.tasks import get_task
from stripefold_lab.training.training_module import TrainingModule

SOURCE = Path(__file__).parents[2] / "src"
BOXES = {
    "stages": 2, "width": 16, "rpn_post_nms_top_n_train": 40, "rpn_post_nms_top_n_test": 20,
    "box_batch_size_per_image": 16, "box_detections_per_img": 10,
}  # fmt: skip
COMMON = {
    "data": "shapes", "image_size": 32, "augmentation": "flip", "batch_size": 8, "accelerator": "cpu",
    "progress": "none", "tensorboard": False, "threads": 1,
}  # fmt: skip
RUNS = {
    "segmentation": {
        "task": "segmentation", "model": "fcn_resnet18", "where": ["backbone.layer*.bn2"], "optimizer": "adamw",
        "learning_rate": 0.003, "epochs": 3, "limit_train": 48, "limit_test": 16, **COMMON,
    },
    "detection": {
        "task": "detection", "model": "fasterrcnn_resnet18_fpn", "model_options": BOXES, "learning_rate": 0.01,
        "where": ["backbone.body.layer*.bn2"], "epochs": 3, "limit_train": 32, "limit_test": 12, **COMMON,
    },
}  # fmt: skip

ONE_EPOCH = {"learning_rate": 0.003, "optimizer": "adamw", "epochs": 1, "limit_train": 16, "limit_test": 8, **COMMON}
OTHERS = {
    "deeplabv3_resnet18": {"task": "segmentation", "where": ["backbone.layer*.bn2"]},
    "maskrcnn_resnet18_fpn": {"task": "detection", "where": ["backbone.body.layer*.bn2"], "model_options": BOXES},
    "retinanet_resnet18_fpn": {
        "task": "detection", "where": ["backbone.body.layer*.bn2"],
        "model_options": {"stages": 2, "width": 16, "topk_candidates": 40, "detections_per_img": 10},
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=list(RUNS))
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("tasks") / "run"
    return train(TrainConfig(run_dir=str(folder), **RUNS[request.param]))


@pytest.mark.slow
def test_a_run_learns_folds_and_says_so(finished) -> None:
    rows = [line.split(",") for line in finished.metrics_file.read_text().splitlines()]
    measures = [measure.name for measure in get_task(finished.config.task).measures]
    assert rows[0] == ["epoch", "step", "learning_rate", "train_loss", *(f"val_{name}" for name in measures), "seconds"]
    losses = [float(row[3]) for row in rows[1:]]
    assert losses[-1] < 0.8 * losses[0]
    assert finished.verification.passed
    assert finished.deployed.score == pytest.approx(finished.attached.score, abs=1e-3)
    start = sf.scales(build_model(finished.config, load_data(finished.config).spec))
    assert all((v - start[name]).abs().max() > 1e-6 for name, v in sf.scales(finished.model).items())
    text = finished.summary_file.read_text()
    for part in (f"| model | test {'mIoU' if 'miou' in measures else 'mAP50'} |", "equivalent in float32"):
        assert part in text


@pytest.mark.slow
@pytest.mark.parametrize("model", list(OTHERS))
def test_the_other_networks_train_and_fold_too(model: str, tmp_path: Path) -> None:
    config = TrainConfig(run_dir=str(tmp_path / "run"), model=model, **OTHERS[model], **ONE_EPOCH)
    finished = train(config)
    assert finished.verification.passed
    assert finished.deployed.score == pytest.approx(finished.attached.score, abs=1e-3)
    trained = load_run(tmp_path / "run")
    start = sf.scales(build_model(config, trained.spec))
    now = sf.scales(trained.model)
    assert len(now) >= 4
    assert all((v - start[name]).abs().max() > 1e-6 for name, v in now.items())
    assert not any("gates" in key for key in finished.folded.state_dict())
    image = finished.example[:1]  # Mask R-CNN's head is asked about 21 boxes of each
    task = get_task(config.task)
    assert task.verify(trained.model, sf.fold(trained.model, check=False), image).passed
    with pytest.raises(VerifyError, match="NOT equivalent"):
        task.verify(trained.model, sf.detach(trained.model), image)


def voc_with_an_empty_box(root: Path) -> str:
    """A box at the column before the first, as files that count from 0 have them."""
    write_voc(root, Shapes(4, 64, 0), Shapes(2, 64, 1))
    for name in ("train_000001", "val_000000"):
        path = root / "Annotations" / f"{name}.xml"
        text = re.sub("<xmin>.*?</xmin>", "<xmin>0</xmin>", path.read_text(), count=1)
        path.write_text(re.sub("<xmax>.*?</xmax>", "<xmax>0</xmax>", text, count=1))
    return f"voc:{root}"


def coco_with_an_empty_box(root: Path) -> str:
    """A width above 0 in the file, and 0 in float32."""
    write_coco(root, Shapes(4, 64, 0), Shapes(2, 64, 1))
    for path in root.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        content["annotations"][0]["bbox"] = [50, 3, 1e-6, 9]
        path.write_text(json.dumps(content))
    return f"coco:{root}"


@pytest.mark.filterwarnings("ignore:.*1 objects without area in their image are left out:UserWarning")
@pytest.mark.parametrize("write", [voc_with_an_empty_box, coco_with_an_empty_box])
def test_a_detector_trains_on_a_folder_with_a_box_without_area(write, tmp_path: Path) -> None:
    config = TrainConfig(
        task="detection", model="ssdlite_mobilenet_v3_small", where=["backbone.*.block.*.1"],
        run_dir=str(tmp_path / "run"),
        **{**ONE_EPOCH, "data": write(tmp_path / "data"), "batch_size": 2, "image_size": 64},
    )  # fmt: skip
    finished = train(config)
    assert finished.verification.passed
    assert len(finished.metrics_file.read_text().splitlines()) == 2


@pytest.mark.slow
def test_evaluate_and_the_commands_agree_with_the_run(finished, tmp_path: Path, capsys) -> None:
    from stripefold_lab.cli.app import run

    for source in (finished.run_dir, finished.folded_file):
        assert evaluate(source).score == pytest.approx(finished.attached.score, abs=1e-3)
    assert run(["eval", str(finished.run_dir)]) == 0
    assert str(evaluate(finished.run_dir)).rpartition(" in ")[0] in capsys.readouterr().out
    assert run(["fold", str(finished.run_dir), "-o", str(tmp_path / "x.safetensors"), "--fuse"]) == 0
    told = capsys.readouterr().out
    assert "equivalent in float32" in told
    assert ("heads before non-maximum suppression" in told) == (finished.config.task == "detection")
    assert run(["verify", str(finished.run_dir), str(tmp_path / "x.safetensors"), "--images", "2"]) == 0
    assert evaluate(tmp_path / "x.safetensors").score == pytest.approx(finished.attached.score, abs=5e-3)


@pytest.mark.slow
def test_a_detectors_heads_tell_other_weights_apart(finished) -> None:
    if finished.config.task != "detection":
        return
    report = verify_detector(finished.model, finished.folded, finished.example)
    assert report.agreeing == 1
    assert report.detections > 0
    assert f"100.00% of {report.detections} agree" in str(report)
    with pytest.raises(VerifyError, match="NOT equivalent"):
        get_task("detection").verify(finished.model, sf.detach(finished.model), finished.example)


@pytest.mark.slow
def test_a_killed_run_of_either_task_ends_with_the_same_bits(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_tasks.py")), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for ends in json.loads(done.stdout).values():
        assert ends["killed"] == ends["left alone"]
        assert len(ends["killed"]["rows"]) == 1 + 2
        assert ends["another seed"]["weights"] != ends["left alone"]["weights"]


def test_every_recipe_builds_and_its_sites_are_there() -> None:
    for name in recipe_names():
        if not name.startswith("shapes"):
            continue
        config = load_config(name)
        spec = ImageSpec(classes=("background", "a", "b", "c"), channels=3, size=config.image_size)
        names = list(sf.scales(build_model(config, spec)))
        assert len(names) in (4, 6)
        assert all(site.startswith("backbone.") for site in names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ends", "count"),
    [
        ("small-vit", (".attn.proj", ".mlp.fc2"), 24),
        ("small-convnext", (".mlp.fc2",), 12),
        ("imagenet-vit-tiny", (".attn.proj", ".mlp.fc2"), 24),
        ("imagenet-convnext", (".mlp.fc2",), 18),
        ("imagenet-repvgg", ("_1x1.bn", "_kxk.bn"), 34),
        ("imagenet-mobilenetv3", (".bn2", ".bn3"), 10),
    ],
)
def test_backbones_have_the_sites_their_recipe_says(name: str, ends: tuple[str, ...], count: int) -> None:
    config = load_config(name)
    model = build_model(config, ImageSpec(classes=tuple("abcd"), channels=3, size=config.image_size))
    names = list(sf.scales(model))
    assert len(names) == count
    assert {end for end in ends if any(site.endswith(end) for site in names)} == set(ends)
    assert all(site.endswith(ends) for site in names)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["small-vit", "small-convnext"])
def test_transformers_and_convnexts_train_by_command_and_fold_exactly(recipe: str, tmp_path: Path, capsys) -> None:
    from stripefold_lab.cli.app import run

    draw_folder(tmp_path / "data")
    words = ["train", "-c", recipe, "--data", f"folder:{tmp_path / 'data'}", "--epochs", "1", "--batch-size", "8"]
    for option in ("threads=1", "accelerator=cpu", "progress=none", "tensorboard=false"):
        words += ["--set", option]
    assert run([*words, "--run-dir", str(tmp_path / "r")]) == 0
    assert "Gates that never moved: none" in capsys.readouterr().out
    trained = load_run(tmp_path / "r")
    exact, images = trained.model.double().eval(), trained.spec.example().double()
    folded = sf.fold(exact, example=images)
    assert sf.verify(exact, folded, images).error <= 1e-10
    assert sf.verify(exact, sf.detach(exact), images, raise_on_mismatch=False).error > 1e-3


def draw_folder(root: Path) -> None:
    """Two classes, eight training images and two test images each."""
    scenes = Shapes(count=20, size=32, seed=0)
    for index in range(20):
        folder = root / ("train" if index < 16 else "test") / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes[index].image.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")


def test_pixel_measures_by_hand() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 0, 0, 0] = logits[0, 1, 0, 1] = logits[0, 1, 1, 0] = logits[0, 2, 1, 1] = 9.0
    classes = torch.tensor([[[0, 1], [0, 255]]])
    measures = PixelMeter(3)
    measures.update({"out": logits}, classes)
    found = measures.compute()
    # Right: pixels 0 and 1 of three that count. IoU of class 0: 1 of 2; of class 1: 1 of 2; class 2 never occurs.
    assert found["miou"] == pytest.approx(0.5)
    assert found["pixel_accuracy"] == pytest.approx(2 / 3)
    right, wrong = torch.log_softmax(torch.tensor([9.0, 0.0, 0.0]), 0)[:2].tolist()
    assert found["loss"] == pytest.approx(-(2 * right + wrong) / 3, rel=1e-5)
    assert float(pixel_loss(logits, classes)) == pytest.approx(found["loss"], rel=1e-5)
    measures = PixelMeter(3)
    measures.update({"out": logits}, torch.full((1, 2, 2), 255))
    assert measures.compute() == {"loss": 0.0, "miou": 0.0, "pixel_accuracy": 0.0}
    assert float(pixel_loss(logits, torch.full((1, 2, 2), 255))) == 0


def test_box_measures_by_hand() -> None:
    box, other = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[20.0, 20.0, 30.0, 30.0]])
    right = {"boxes": torch.cat([box, other]), "labels": torch.tensor([1, 1]), "iscrowd": torch.tensor([0, 0])}
    found = {"boxes": box, "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    measures = BoxMeter()
    measures.update([found], [right])
    # One of two found: precision 1 up to a recall of 0.5, which is 51 of COCO's 101 points.
    assert measures.compute()["map50"] == pytest.approx(51 / 101, abs=1e-3)
    measures = BoxMeter()
    measures.update([found], [{**right, "iscrowd": torch.tensor([0, 1])}])
    assert measures.compute()["map50"] == pytest.approx(1.0)
    measures = BoxMeter()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    measures.update([{**nothing, "scores": torch.zeros(0)}], [{**nothing, "iscrowd": torch.zeros(0).long()}])
    assert measures.compute() == {"map50": 0.0, "map": 0.0}


def test_measures_need_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchmetrics.detection

    def missing(**options: object) -> None:
        raise ModuleNotFoundError("pycocotools")

    monkeypatch.setattr(torchmetrics.detection, "MeanAveragePrecision", missing)
    with pytest.raises(ConfigError, match=r"mAP is computed by pycocotools; run: pip install .stripefold\[train\]"):
        BoxMeter()


def test_detections_are_paired_by_class_box_and_score() -> None:
    class Fixed(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
            boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 9.0]]) + self.shift
            return [{"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.8])}]

    from stripefold_lab.training.agreement import _detect, _partners

    def pair(shift: float) -> tuple[int, float, float]:
        ours, theirs = (_detect(Fixed(by), torch.zeros(1))[0] for by in (0.0, shift))
        return _partners(ours, theirs)

    assert pair(0.0) == (2, 0.0, 0.0)
    assert pair(0.005)[0] == 2
    assert pair(0.005)[1] == pytest.approx(0.005, rel=1e-3)
    assert pair(0.5)[0] == 0
    report = DetectorReport(heads=None, detections=0, agreeing=1.0, box_difference=0.0, score_difference=0.0)
    assert "final detections: none on these images" in str(report)


def test_an_auxiliary_head_counts_half() -> None:
    class Two(nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": images, "aux": 2 * images}

    config = TrainConfig(**RUNS["segmentation"])
    module = TrainingModule(Two(), config, classes=3, steps_per_epoch=1)
    images, classes = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    expected = pixel_loss(images, classes) + 0.5 * pixel_loss(2 * images, classes)
    assert torch.equal(module.task.loss(module, (images, classes), config), expected)


def test_mixed_images_are_judged_by_both_classes(config: TrainConfig) -> None:
    class Pass(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    images, labels = torch.randn(6, 4, 1, 1), torch.arange(6) % 4
    torch.manual_seed(3)
    mixed, others, share = mix(images, labels, 0.4)
    assert 0 < share < 1
    assert sorted(others.tolist()) == sorted(labels.tolist())
    task = get_task(config.task)
    torch.manual_seed(3)
    entropy = torch.nn.functional.cross_entropy
    expected = share * entropy(mixed.flatten(1), labels) + (1 - share) * entropy(mixed.flatten(1), others)
    batch = (images, labels)
    assert task.loss(Pass(), batch, config.with_overrides(mixup=0.4)).item() == pytest.approx(expected.item())
    assert task.loss(Pass(), batch, config).item() == pytest.approx(entropy(images.flatten(1), labels).item())


def test_results_are_shown_by_their_task() -> None:
    common = {"images": 10, "seconds": 1.0, "kind": "folded", "source": "x"}
    pixels = EvalResult(measures={"loss": 0.5, "miou": 0.25, "pixel_accuracy": 0.75}, task="segmentation", **common)
    assert str(pixels) == "mIoU 25.00%, pixel accuracy 75.00%, loss 0.5000, 10 images in 1.0 s"
    assert (pixels.score, pixels.accuracy, pixels.loss) == (0.25, 0.75, 0.5)
    boxes = EvalResult(measures={"map": 0.1, "map50": 0.2}, task="detection", **common)
    assert (boxes.score, str(boxes)) == (0.2, "mAP50 20.00%, mAP 10.00%, 10 images in 1.0 s")
    with pytest.raises(KeyError):
        _ = boxes.accuracy
    assert get_task("classification").score.shown(1.0) == "100.00%"
