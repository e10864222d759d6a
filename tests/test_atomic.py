"""Files appear whole, with the mode a user's own files have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stripefold.atomic import atomic_path, write_text


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def usual(tmp_path: Path) -> int:
    """The mode of a file made in the ordinary way, under this process's umask."""
    (tmp_path / "ordinary").touch()
    return mode(tmp_path / "ordinary")


def test_a_new_file_has_the_usual_mode(tmp_path: Path, usual: int) -> None:
    write_text(tmp_path / "text", "one")
    with atomic_path(tmp_path / "tensors") as temporary:
        save_file({"x": torch.zeros(1)}, temporary)  # puts a file of its own there, readable for its owner only
    with atomic_path(tmp_path / "private") as temporary:
        temporary.chmod(0o600)
    assert {mode(tmp_path / name) for name in ("text", "tensors", "private")} == {usual}


def test_a_replaced_file_keeps_its_mode(tmp_path: Path, usual: int) -> None:
    path = tmp_path / "text"
    path.write_text("one", encoding="utf-8")
    path.chmod(0o640)
    write_text(path, "two")
    assert path.read_text(encoding="utf-8") == "two"
    assert mode(path) == 0o640 != usual


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "text"
    write_text(path, "one")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("tw", encoding="utf-8")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fail()
    assert path.read_text(encoding="utf-8") == "one"
    assert os.listdir(tmp_path) == ["text"]


WRITER = """
import os, signal, sys
from stripefold.atomic import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half of")
    print("writing", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def writer(target: Path) -> subprocess.Popen[str]:
    source = str(Path(__file__).parents[1] / "src")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip
    assert process.stdout.readline() == "writing\n"
    return process


def leftovers(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.part"))


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
def test_what_a_killed_writer_leaves_goes_with_the_next_write(tmp_path: Path) -> None:
    target = tmp_path / "weights.safetensors"
    killed, alive = writer(target), writer(target)
    killed.communicate("die\n")
    assert len(leftovers(tmp_path)) == 2
    write_text(tmp_path / "another", "x")  # which is no business of this file's
    assert len(leftovers(tmp_path)) == 2
    write_text(target, "whole")
    assert target.read_text(encoding="utf-8") == "whole"
    assert len(leftovers(tmp_path)) == 1  # what is being written stays
    alive.communicate("die\n")
    with pytest.raises(RuntimeError, match="no"), atomic_path(target):
        raise RuntimeError("no")
    assert not leftovers(tmp_path)
    assert target.read_text(encoding="utf-8") == "whole"


def test_files_of_like_names_stay(tmp_path: Path) -> None:
    names = (".a.txt.part", ".a.txt.12345678.part.bak", ".ab.txt.12345678.part", ".a.txt.x2345678.part", "a.txt.part")
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".a.txt.12ab5678.part").touch()
    write_text(tmp_path / "a.txt", "x")
    assert {path.name for path in tmp_path.iterdir()} == {*names, "a.txt"}
