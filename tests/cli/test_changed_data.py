"""Commands on a run whose data is no longer what it was trained on, and runs that two commands want at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from stripefold_lab.cli import main

SOURCE = Path(__file__).parents[2] / "src"
TINY = [
    "--model", "resnet8", "--set", "tensorboard=false", "--set", "accelerator=cpu", "--set", "warmup_epochs=0",
    "--set", "progress=none", "--set", "image_size=8", "--set", "augmentation=none", "--set", "batch_size=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a run on them with static and one with dynamic attention."""
    root = tmp_path_factory.mktemp("place")
    for half in ("train", "test"):
        for shade, name in ((40, "ant"), (200, "bee")):
            (root / "data" / half / name).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (8, 8), (shade, shade + number, 9)).save(root / "data" / half / name / f"{number}.png")
    for form in ("static", "dynamic"):
        words = ["--data", f"folder:{root / 'data'}", "--form", form, "--epochs", "1", "--run-dir", str(root / form)]
        assert main(["train", *TINY, *words]) == 0
    return root


def swap(root: Path) -> None:
    """Names, counts and sizes stay what they were."""
    for half in ("train", "test"):
        first, second = root / "data" / half / "ant", root / "data" / half / "bee"
        first.rename(root / "x")
        second.rename(first)
        (root / "x").rename(second)


def rename(root: Path) -> None:
    for half in ("train", "test"):
        (root / "data" / half / "ant").rename(root / "data" / half / "aphid")


@pytest.mark.parametrize(
    ("change", "line"),
    [(swap, "fingerprint of the sizes and contents of the training"), (rename, "class 0 was 'ant' and is now 'aphid'")],
)
@pytest.mark.parametrize("command", ["eval", "fold", "bake", "observe"])
def test_changed_data_is_told_in_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change, line: str, command: str
) -> None:
    shutil.copytree(place / "data", tmp_path / "kept")
    run, output = place / ("dynamic" if command in ("bake", "observe") else "static"), tmp_path / "o.safetensors"
    written = ["-o", str(output)]
    words = {"eval": [], "fold": written, "bake": [*written, "--images", "8"], "observe": ["--images", "8"]}[command]
    try:
        change(place)
        assert main([command, str(run), *words]) == 2
        said = capsys.readouterr().err
        assert line in said
        assert said.count("\n") == 1
        assert not output.exists()
        if command == "fold":  # the file itself, without a look at the data
            assert main([command, str(run / "checkpoints" / "last.ckpt"), *words]) == 0
        if command == "observe":  # what looks at no image compares none
            assert main([command, str(run), *words, "--data", "noise"]) == 0
    finally:
        shutil.rmtree(place / "data")
        shutil.copytree(tmp_path / "kept", place / "data")
    assert main([command, str(run), *words, *(["--overwrite"] if command == "fold" else [])]) == 0  # the control


def test_a_run_without_its_data_still_folds(place: Path, tmp_path: Path) -> None:
    (place / "data").rename(place / "away")
    try:
        assert main(["fold", str(place / "static"), "-o", str(tmp_path / "o.safetensors")]) == 0
    finally:
        (place / "away").rename(place / "data")


def test_epochs_beside_resume_are_asked_for(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place / "static", tmp_path / "run")
    resume = ["train", "--resume", "--run-dir", str(tmp_path / "run")]
    assert main([*resume, "--set", "learning_rate=0.7"]) == 2
    assert "learning_rate was 0.1 and is now 0.7" in capsys.readouterr().err
    assert main([*resume, "--set", "epochs=2"]) == 0
    assert main([*resume, "--epochs", "3"]) == 0
    assert main(resume) == 0
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 4


@pytest.mark.slow
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_two_processes_want_one_run(place: Path, tmp_path: Path, resume: list[str]) -> None:
    words = [*TINY, "--data", f"folder:{place / 'data'}", "--epochs", "3", "--set", "workers=1", "--run-dir", "run"]
    if resume:
        shutil.copytree(place / "static", tmp_path / "run")
        words = ["--resume", "--epochs", "40", "--run-dir", "run"]
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "stripefold", "train", *words], cwd=tmp_path, text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    refused = said[[process.returncode for process in both].index(2)]
    # Another run works in it, or has just ended there.
    assert "another process works on the run in run" in refused or "holds a run already" in refused
    assert refused.count("\n") == 1
    assert (tmp_path / "run" / "folded.safetensors").is_file()
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_holds_nothing(place: Path, tmp_path: Path, workers: int) -> None:
    words = ["--data", f"folder:{place / 'data'}", "--epochs", "500", "--set", f"workers={workers}", "--run-dir", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "stripefold", "train", *TINY, *words], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert (tmp_path / "run" / ".lock").exists()
    behind = (tmp_path / "run" / "metrics.csv").read_text().count("\n") - 1
    assert main(["train", "--resume", "--epochs", str(behind + 1), "--run-dir", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run" / ".lock").exists()
