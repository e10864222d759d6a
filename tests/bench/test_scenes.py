"""The two tasks on photographs: their plan, the folders that the readers see, and a run that goes on and draws."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.accuracy.others import tasks_section
from benchmarks.accuracy.scenes import configure, load_tasks, run_task, view_of
from stripefold_lab.datasets import Shapes
from stripefold_lab.datasets.ade20k import open_ade20k
from stripefold_lab.datasets.voc import open_voc_boxes
from stripefold_lab.datasets.write import write_ade20k, write_voc

SMALL = {"image_size": 64, "epochs": 1, "warmup_epochs": 0, "batch_size": 4, "accelerator": "cpu", "progress": "none"}


def camvid(folder: Path) -> Path:
    """Three scenes to train on, two in `test`, one in `validation`, which is not looked at."""
    write_ade20k(folder / "camvid", train=Shapes(4, 64, 0), val=Shapes(1, 64, 1))
    write_ade20k(folder / "other", train=Shapes(2, 64, 2), val=Shapes(1, 64, 3))
    for kind in ("images", "annotations"):
        shutil.copytree(folder / "other" / kind / "training", folder / "camvid" / kind / "test")
    names = [line.split("\t")[-1] for line in (folder / "camvid" / "objectInfo150.txt").read_text().splitlines()[1:]]
    (folder / "camvid" / "labels.txt").write_text("\n".join(names) + "\n")
    return folder


def bccd(folder: Path) -> Path:
    write_voc(folder / "bccd", train=Shapes(5, 64, 0), val=Shapes(2, 64, 1))
    lists = folder / "bccd" / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text())
    (lists / "test.txt").write_text((lists / "val.txt").read_text())
    (lists / "val.txt").write_text("")
    return folder


def test_every_run_is_one_of_the_product(tmp_path: Path) -> None:
    for task in load_tasks().values():
        assert len(task["seeds"]) >= 3
        backbone, gated = (
            configure(task, changes, 1, root=tmp_path, run=tmp_path / "run")
            for changes in task["configurations"].values()
        )
        assert backbone.image_size is not None
        assert backbone.image_size >= 256
        assert not backbone.pretrained
        assert gated.with_overrides(form="none") == backbone


def test_the_readers_find_what_the_plan_tests_on(tmp_path: Path) -> None:
    tasks = load_tasks()
    for _ in range(2):  # the folder of links may be there
        view = view_of("camvid", tasks["camvid"]["halves"], camvid(tmp_path) if _ == 0 else tmp_path, tmp_path / "view")
    train, test = open_ade20k(view)
    assert (len(train), len(test)) == (4, 2)
    view = view_of("bccd", tasks["bccd"]["halves"], bccd(tmp_path), tmp_path / "boxes")
    train, test = open_voc_boxes(view)
    assert (len(train), len(test)) == (5, 2)


@pytest.mark.parametrize("name", ["camvid", "bccd"])
def test_a_task_is_trained_drawn_and_told(name: str, tmp_path: Path) -> None:
    data = camvid(tmp_path) if name == "camvid" else bccd(tmp_path)
    task: Any = {**load_tasks()[name], "seeds": [0]}
    options = argparse.Namespace(data=data, work=tmp_path / "work", results=tmp_path / "results")
    run_task(name, task, options, **SMALL)
    files = {path.name for path in (tmp_path / "results" / name).iterdir()}
    assert files == {f"{label}-seed0.{form}" for label in ("backbone", "asr-se") for form in ("json", "jpg")}
    record = json.loads((tmp_path / "results" / name / "asr-se-seed0.json").read_text())
    assert record["folded_parameters"] < record["parameters"]
    assert record["folded"][task["measure"]] == pytest.approx(record["trained"][task["measure"]], abs=0.05)
    with Image.open(tmp_path / "results" / name / "asr-se-seed0.jpg") as picture:
        assert picture.size == (3 * 64, 2 * 64)
    before = (tmp_path / "results" / name / "asr-se-seed0.json").stat().st_mtime_ns
    run_task(name, task, options, **SMALL)  # nothing is left to do
    assert (tmp_path / "results" / name / "asr-se-seed0.json").stat().st_mtime_ns == before
    text = tasks_section(tmp_path / "results")
    assert "| ASR(SE) |" in text
    assert "1 of 3" in text
    assert "Not run yet" in text
