"""Fresh interpreters."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stripefold.errors import StripefoldError
from stripefold_lab.bench.processes import Statement, measure_processes


def test_statement_and_command() -> None:
    tasks = {"nothing": Statement(statement="pass"), "wait": [sys.executable, "-c", "import time; time.sleep(0.05)"]}
    report = measure_processes("wait", tasks, rounds=2, date="2024-01-01")
    nothing, wait = report.rows
    assert nothing.seconds.median < 0.05 <= wait.seconds.median
    assert wait.ratio.median > 1


def test_a_failing_process_is_told() -> None:
    with pytest.raises(StripefoldError, match="ZeroDivisionError"):
        measure_processes("broken", {"broken": Statement(statement="1 / 0")}, rounds=1)


def test_modules_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long.py").write_text("x = 1\n" * 20)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    compiled = "import long, os; assert os.path.exists(long.__cached__)"
    measure_processes("compiled", {"import": Statement(statement=compiled)}, rounds=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.py"]  # nothing is written beside the sources
