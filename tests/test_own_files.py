"""A folder of results: what was not written by stripefold, or was changed since, is never written over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stripefold.errors import ConfigError
from stripefold.own_files import LIST, check_own_files, listed_files, own_files

NAMES = ("table.csv", "pictures/one.png")


def write(folder: Path, text: str = "ours") -> None:
    with own_files(folder, NAMES, ConfigError):
        for name in NAMES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)


def test_our_own_files_are_replaced(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "again")
    assert (tmp_path / NAMES[0]).read_text() == "again"
    assert set(listed_files(tmp_path)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_file_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("theirs")
    for attempt in (lambda: write(tmp_path), lambda: check_own_files(tmp_path, NAMES, ConfigError)):
        with pytest.raises(ConfigError, match=f"{name} was not written by stripefold and would be overwritten"):
            attempt()
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["theirs"]


def test_a_changed_file_stays(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / NAMES[0]).write_text("ours, with their notes")
    with pytest.raises(ConfigError, match="table.csv was changed since stripefold wrote it"):
        write(tmp_path)
    (tmp_path / NAMES[0]).unlink()
    write(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "link", "broken link"])
def test_what_is_no_file_stays(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / NAMES[0], tmp_path / "other"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(other)
        if kind == "link":
            other.write_text("theirs")
    with pytest.raises(ConfigError, match="table.csv was not written by stripefold"):
        write(tmp_path)
    assert not other.exists() or other.read_text() == "theirs"


def test_a_link_in_the_place_of_our_file_stays(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "other").write_text("ours")
    (tmp_path / NAMES[0]).unlink()
    (tmp_path / NAMES[0]).symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match="table.csv was changed since"):
        write(tmp_path)


def test_what_a_killed_process_left_is_ours(tmp_path: Path) -> None:
    writing = own_files(tmp_path, NAMES, ConfigError)
    writing.__enter__()
    (tmp_path / NAMES[0]).write_text("half")
    write(tmp_path)
    assert (tmp_path / NAMES[0]).read_text() == "ours"


@pytest.mark.parametrize("text", ["{}", "not json", '{"files": [1]}', '{"files": {"a": 1}}', "[" * 100_000])
def test_a_list_of_another_origin_stays(tmp_path: Path, text: str) -> None:
    (tmp_path / LIST).write_text(text)
    with pytest.raises(ConfigError, match="is not stripefold's list of what it wrote there; choose another folder"):
        write(tmp_path)
    assert (tmp_path / LIST).read_text() == text


def test_two_commands_share_a_folder(tmp_path: Path) -> None:
    write(tmp_path)
    with own_files(tmp_path, ["other.json"], ConfigError):
        (tmp_path / "other.json").write_text("{}")
    assert set(json.loads((tmp_path / LIST).read_text())["files"]) == {*NAMES, "other.json"}
    write(tmp_path)
