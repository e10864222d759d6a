"""What a command leaves alone, says by name, or shows safely: foreign files, full disks, pipes, terminals, labels."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stripefold.errors import printable
from stripefold_lab.cli import main
from stripefold_lab.cli.entry import EXTRA_OF, explain
from stripefold_lab.cli.output import print_table

ROOT = Path(__file__).parents[2]
SMALL = ["timm/mobilenetv3_small_050", "--size", "32", "--data", "noise", "--images", "4"]


@pytest.mark.parametrize("name", ["index.html", "stripes.csv", "stripes.safetensors", "channels.csv"])
def test_observe_writes_over_no_foreign_file(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text("theirs")
    assert main(["observe", *SMALL, "-o", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert f"{tmp_path / name} was not written by stripefold and would be overwritten" in printed.err
    assert printed.out == ""  # before the work
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_observe_again_replaces_its_own_and_no_picture_of_theirs(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    assert main(["observe", *SMALL, "-o", str(tmp_path)]) == 0
    first = {path.name for path in pictures.iterdir()}
    assert len(first) == 10
    (pictures / "gate-99-theirs.png").write_text("theirs")
    assert main(["observe", "resnet8", "--data", "noise", "--images", "4", "-o", str(tmp_path)]) == 0
    assert [path.name for path in pictures.iterdir()] == ["gate-99-theirs.png"]
    (pictures / sorted(first)[0]).write_text("theirs")
    assert main(["observe", *SMALL, "-o", str(tmp_path)]) == 2


def test_robustness_and_bake_keep_the_same_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, name in ((["robustness", "none", "-o"], "curves.png"), (["bake", "none", "--report"], "bake.json")):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("theirs")
        command = [*words, str(folder)]
        if words[0] == "bake":
            run = tmp_path / "run"
            words_of_run = ["--set", "model=resnet8", "--set", "limit_train=8", "--set", "limit_test=8"]
            off = ["--set", "tensorboard=false", "--set", "warmup_epochs=0", "--set", "progress=none"]
            assert (
                main(["train", *words_of_run, *off, "--form", "dynamic", "--epochs", "1", "--run-dir", str(run)]) == 0
            )
            command[1] = str(run)
        assert main(command) == 2
        assert f"{folder / name} was not written by stripefold" in capsys.readouterr().err
        assert (folder / name).read_text() == "theirs"


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from stripefold_lab.cli import main
import stripefold.export, stripefold_lab.training.loading, torch.onnx, onnxscript
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(main({words!r}))
"""


@pytest.mark.parametrize("suffix", ["safetensors", "pt2", "onnx"])
def test_export_on_a_full_disk_names_the_file(tmp_path: Path, suffix: str) -> None:
    """A limit on the size of files ends a write as a full disk does: with an error of the system."""
    path = tmp_path / f"net.{suffix}"
    path.write_text("before")
    words = ["export", "resnet8", "-o", str(path), "--overwrite", "--no-check"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(limit=100_000, words=words)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"stripefold: cannot write {path}: ")
    assert ".part" not in done.stderr.splitlines()[-1]
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["pipe.ckpt", "pipe.safetensors"])
@pytest.mark.parametrize(
    "command", [["eval"], ["fold", "-o", "x.safetensors"], ["export", "-o", "x.onnx"], ["observe"]]
)
def test_a_pipe_is_refused(tmp_path: Path, name: str, command: list[str], capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / name)
    assert main([command[0], str(tmp_path / name), *command[1:]]) == 2
    assert f"{name} is a pipe (FIFO), not a file" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_knows_few_signs(tmp_path: Path, encoding: str) -> None:
    for half in ("train", "test"):
        for label in ("猫", "Ωμέγα"):
            (tmp_path / half / label).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / half / label / "0.png")
    code = (
        "import sys; from stripefold_lab.cli import main\n"
        "from stripefold_lab.cli.output import print_line, print_table\n"
        "code = main(['attention'])\n"
        "print_line('\\u732b'); print_table('\\u732b', ['a'], [['\\u03a9 \\xd7 3']]); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"\\u732b" in done.stdout
    assert b"\\u03a9" in done.stdout


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("bell\x07, back\x08, \r", "bell\\x07, back\\x08, \\r"),
        ("\x9b2J", "\\x9b2J"),
        ("left\u202eright", "left\\u202eright"),
        ("name\udcff", "name\\udcff"),
        ("two\nlines 猫", "two\nlines 猫"),
    ],
)
def test_labels_are_shown_and_not_obeyed(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(text) == shown
    print_table(text, ["name"], [[text]], caption=text)
    assert "\x1b" not in capsys.readouterr().out


def test_classes_that_would_move_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for half in ("train", "test"):
        for label in ("\x1b[2Jcat", "dog"):
            (tmp_path / half / label).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / half / label / "0.png")
    weights = tmp_path / "weights.pth"
    from stripefold_lab.models import create_model

    torch.save(create_model("resnet8", num_classes=2).state_dict(), weights)
    assert main(["eval", "resnet8", "--weights", str(weights), "--data", f"folder:{tmp_path}"]) == 0
    assert "\x1b" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("module", "extra"),
    [("scipy.stats", "sweep"), ("PIL", "vision"), ("lightning_fabric.plugins", "train"), ("pycocotools", "train")],
)
def test_a_missing_package_names_its_extra(module: str, extra: str) -> None:
    status, line = explain(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert (status, line.endswith(f"pip install 'stripefold[{extra}]'")) == (2, True)
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"\n{EXTRA_OF[module.partition('.')[0]]} = [" in declared


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("PIL", ["eval", "resnet8", "--weights", "w.pth", "--data", "folder:pictures"], "vision"),
        ("lightning_fabric", ["train"], "train"),
    ],
)
def test_a_command_without_a_package(tmp_path: Path, module: str, words: list[str], extra: str) -> None:
    from stripefold_lab.models import create_model

    for half in ("train", "test"):
        (tmp_path / "pictures" / half / "a").mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "pictures" / half / "a" / "0.png")
    torch.save(create_model("resnet8", num_classes=1).state_dict(), tmp_path / "w.pth")
    code = f"import sys; sys.modules[{module!r}] = None; from stripefold_lab.cli import main; sys.exit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"stripefold[{extra}]" in done.stderr.splitlines()[-1]


def test_streams_that_cannot_be_told_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert main(["attention"]) == 0
