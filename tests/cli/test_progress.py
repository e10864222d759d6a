"""How far a command is, and how long it still takes."""

from __future__ import annotations

import sys

import pytest

from stripefold_lab.cli import progress as module
from stripefold_lab.cli.progress import ProgressLine


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


def test_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine() as progress:
        for now, done in ((0, 0), (4, 10), (11, 20), (12, 30), (30, 50)):
            clock.now = now
            progress.tell("images", done, 100)
    assert capsys.readouterr().err == "images, 20 of 100, about 44 s left\nimages, 50 of 100, about 30 s left\n"


def test_written_over_on_a_terminal(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressLine() as progress:
        progress.tell("images", 10, 20)
        progress.tell("writing\x1b[2J stripes.csv")
        progress.tell("rows", 3)
    start = "\r\x1b[K"
    wanted = f"{start}images, 10 of 20{start}writing\\x1b[2J stripes.csv{start}rows, 3{start}"
    assert capsys.readouterr().err == wanted


@pytest.mark.parametrize("same", [None, "measurements"])
def test_the_clock_is_that_of_a_stage(clock: Clock, capsys: pytest.CaptureFixture[str], same: str | None) -> None:
    """Another stage starts it anew; a name that changes within one does not."""
    progress = ProgressLine()
    for now, what, done in ((0, "a", 0), (100, "b", 1), (200, "c", 2)):
        clock.now = now
        progress.tell(what, done, 4, same=same)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == ("c, 2 of 4" if same is None else "c, 2 of 4, about 3 min left")


def test_only_the_first_process_speaks(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine(told=False) as progress:
        clock.now = 100
        progress.tell("images", 10, 20)
    assert capsys.readouterr().err == ""
