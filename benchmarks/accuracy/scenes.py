"""Segmentation and detection on photographs: backbone against ASR(SE), paired seeds, from scratch.

    python -m benchmarks.accuracy.scenes --data FOLDER --work WORK [--tasks camvid,bccd]

FOLDER holds `camvid` and `bccd` as they are unpacked. Every run is one of `stripefold train`: killed at any moment, it
goes on from its last epoch under the same command. One JSON each lies in `results/`, and beside those of seed 0 a
picture of what the network says about some test images: the image, the truth, the network.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from benchmarks.accuracy.plan import RESULTS, slug
from benchmarks.accuracy.predictions import draw_predictions
from benchmarks.accuracy.train import describe_session
from stripefold.atomic import write_text
from stripefold_lab.training import TrainConfig, TrainResult, load_config, train

PLAN = Path(__file__).parent / "scenes.yaml"


def load_tasks(path: Path = PLAN) -> dict[str, Any]:
    """The plan: every task with its options, seeds and configurations.

    Args:
        path: The file.
    """
    plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    common = {key: plan.pop(key) for key in ("seeds", "configurations")}
    return {name: {**task, **common} for name, task in plan.items()}


def configure(
    task: Mapping[str, Any], changes: Mapping[str, Any], seed: int, *, root: Path, run: Path, **more: Any
) -> TrainConfig:
    """The options of one run as `stripefold train` takes them.

    Args:
        task: Of the plan.
        changes: Of the configuration.
        seed: Of the run.
        root: The data set in the layout that its reader expects.
        run: The run's folder.
        more: Other options, to try it out.
    """
    reader, _, _ = task["options"]["data"].partition(":")
    own = {"data": f"{reader}:{root}", "run_dir": str(run), "resume": True, "tensorboard": False, "progress": "lines"}
    return load_config(task["base"], **{**task["options"], **changes, "seed": seed, **own, **more})


def view_of(task: str, halves: Mapping[str, str], data: Path, view: Path) -> Path:
    """The data set as its reader expects it: what the plan trains and tests on stands for its two halves.

    Args:
        task: ``camvid`` or ``bccd``.
        halves: What the reader looks for -> what it is to find there.
        data: Where the data set lies.
        view: A folder of links, made where it is not there.
    """
    source = (data / task).resolve()
    view.mkdir(parents=True, exist_ok=True)
    if task == "camvid":
        links = {
            f"{kind}/{asked}": f"{kind}/{given}"
            for kind in ("images", "annotations")
            for asked, given in halves.items()
        }
    else:
        links = {f"ImageSets/Main/{asked}.txt": f"ImageSets/Main/{given}.txt" for asked, given in halves.items()}
        links |= {name: name for name in ("JPEGImages", "Annotations")}
    for name, target in {**links, "labels.txt": "labels.txt"}.items():
        (view / name).parent.mkdir(parents=True, exist_ok=True)
        if not (view / name).exists():
            os.symlink(source / target, view / name)
    return view


def record_of(result: TrainResult, about: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What is kept of a finished run.

    Args:
        result: What `train` gave.
        about: Task, configuration, seed, session.
        seconds: Processor time of this process.
    """
    options = {name: value for name, value in result.config.to_dict().items() if name not in ("run_dir", "data")}
    return {
        **about,
        "trained": dict(result.attached.measures),
        "folded": dict(result.deployed.measures),
        "images": result.deployed.images,
        "agreement": None if result.verification is None else str(result.verification),
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "folded_parameters": sum(p.numel() for p in result.folded.parameters()),
        "cpu_seconds_of_last_session": round(seconds, 1),
        "epochs_of_last_session": result.epochs_run,
        "options": options,
    }


def run_task(name: str, task: Mapping[str, Any], options: argparse.Namespace, **more: Any) -> None:
    """Train what is not there yet of one task.

    Args:
        name: Of the task.
        task: Of the plan.
        options: Of the command line.
        more: Options of the runs, to try it out.
    """
    root = view_of(name, task["halves"], options.data, options.work / "views" / name)
    for seed in task["seeds"]:
        for label, changes in task["configurations"].items():
            file = options.results / name / f"{slug(label)}-seed{seed}.json"
            run = options.work / name / f"{slug(label)}-seed{seed}"
            run.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(run.with_suffix(".lock"))
            if file.exists():
                continue
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue  # another process has it
            with lock:
                _run(configure(task, changes, seed, root=root, run=run, **more), (name, label, seed), file)
                lock.release()


def _run(config: TrainConfig, who: tuple[str, str, int], file: Path) -> None:
    before = time.process_time()
    result = train(config)
    session = describe_session(torch.device("cpu"))
    about = {"task": who[0], "configuration": who[1], "seed": who[2], "session": session}
    file.parent.mkdir(parents=True, exist_ok=True)
    if who[2] == 0:
        draw_predictions(result, file.with_suffix(".jpg"))
    write_text(file, json.dumps(record_of(result, about, time.process_time() - before), indent=1) + "\n")
    print(f"{file.stem}: {result.deployed}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds camvid and bccd")
    parser.add_argument("--work", type=Path, required=True, help="where the runs lie")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tasks", default="camvid,bccd")
    parser.add_argument("--quick", action="store_true", help="16 images, one epoch: does it run?")
    options = parser.parse_args(arguments)
    more = {"limit_train": 16, "limit_test": 4, "epochs": 1, "warmup_epochs": 0} if options.quick else {}
    for name in options.tasks.split(","):
        run_task(name, load_tasks()[name], options, **more)


if __name__ == "__main__":
    main()
