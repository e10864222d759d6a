"""Every script of benchmarks/ runs (quick), keeps nothing then, and results render."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fold_time, import_time, inference, observe_time, render, train_step
from stripefold_lab.bench import Candidate, Settings, compare


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", [fold_time, import_time, inference, observe_time, train_step], ids=lambda script: script.__name__
)
def test_quick(script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--quick", "--output", str(tmp_path), "--date", "2024-01-01"])
    assert "quartiles" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_figures_show_losses_beside_wins(tmp_path: Path) -> None:
    report = compare("Nothing", [Candidate(name="plain", run=lambda: None)], Settings(rounds=1), date="2024-01-01")
    report = report.with_limits({"plain": {"seconds": 1.0, "ratio": 0.5}})
    report.save(tmp_path / "nothing.json")
    reports = render.load_reports(tmp_path)
    page = render.with_figures("a\n<!-- figures: x -->\nstale text\n<!-- end of figures -->\nb\n", reports)
    assert "stale text" not in page
    assert "| holds |" in page
    assert "| **missed** |" in page
    assert "### Nothing" in render.render(reports)


def test_without_results_the_page_says_so() -> None:
    assert "No results are kept" in render.figures([])
