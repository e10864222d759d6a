"""Segmentation and detection: disturbed from outside with their own score."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stripefold.errors import ConfigError
from stripefold_lab.robustness import measure_robustness
from stripefold_lab.robustness.corruptions import Corruption
from stripefold_lab.training import TrainConfig, evaluate
from stripefold_lab.training.data import load_data
from tests.robustness.runs import write_run

SCENES = {"data": "shapes", "image_size": 48, "limit_test": 3, "limit_train": 2, "batch_size": 2}


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_the_image_is_changed_and_its_target_is_not(task: str) -> None:
    plain = load_data(TrainConfig(task=task, **SCENES)).test
    noisy = plain.changed(Corruption("gaussian-noise", 5, seed=0))
    image, target = plain[1]
    changed, same = noisy[1]
    assert 0.05 < float((changed - image).std()) < 1
    if task == "segmentation":
        assert torch.equal(same, target)
    else:
        assert torch.equal(same["boxes"], target["boxes"])
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert torch.equal(noisy[1][0], changed)
    assert torch.equal(plain[1][0], image)


@pytest.mark.slow
def test_a_segmentation_run(tmp_path: Path) -> None:
    where = "backbone.layer*.bn2"
    run = write_run(tmp_path, "static", task="segmentation", model="fcn_resnet18", where=where, **SCENES)
    report = measure_robustness([run], kinds=["contrast", "batch-random"], severities=[5])
    assert report.measure == "miou"
    assert report.of("ASR(SE), attached", "clean")[0].scores == (evaluate(run).score,)
    assert max(each.error for each in report.equivalences) <= 1e-10
    assert min(each.control for each in report.equivalences) > 1e-6


@pytest.mark.slow
def test_a_detection_run(tmp_path: Path) -> None:
    where = "backbone.body.layer*.bn2"
    changes = {"model": "retinanet_resnet18_fpn", "where": where, "model_options": {"stages": 2, "width": 16}}
    run = write_run(tmp_path, "static", task="detection", **{**SCENES, **changes})
    report = measure_robustness([run], kinds=["noise"], severities=[5])
    assert report.measure == "map50"
    assert max(each.error for each in report.equivalences) <= 1e-10
    with pytest.raises(ConfigError, match="'batch-random' needs to know which image .* for detection"):
        measure_robustness([run], kinds=["batch-random"])
    from stripefold_lab.robustness.measure import _suitable

    assert "batch-random" not in _suitable(None, TrainConfig(task="detection", **SCENES))
