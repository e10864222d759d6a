"""Files appear whole, with the mode a user's own files have."""

from __future__ import annotations

import os
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
