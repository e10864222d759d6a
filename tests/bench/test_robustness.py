"""The robustness experiment: the script runs, and the page shows the kept reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

from benchmarks import robustness
from benchmarks.robustness import IMAGES, PAGE, SEEDS, read, render, write_page


def test_the_page_shows_the_kept_reports(tmp_path: Path) -> None:
    reports = read()
    assert "quiet" in reports
    assert render(reports) in PAGE.read_text(encoding="utf-8")
    page = tmp_path / "robustness.md"
    page.write_text("<!-- results: by a script -->\nold\n<!-- end of results -->\n")
    write_page(reports, page)
    assert page.read_text() == f"<!-- results: by a script -->\n{render(reports)}<!-- end of results -->\n"


def test_the_kept_reports_are_what_the_page_says() -> None:
    for noise, report in read().items():
        assert report.images == IMAGES
        assert set(report.seeds.values()) == {SEEDS}
        assert max(each.error for each in report.equivalences) <= 1e-10
        assert min(each.control for each in report.equivalences) > 1e-3
        named = [*(source for sources in report.sources.values() for source in sources)]
        assert all(source.startswith(f"{noise}/") for source in named)  # no path of a machine


@pytest.mark.slow
def test_the_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for part, count in (("train", 8), ("test", 3)):
        for kind in ("cat", "dog"):
            (tmp_path / "data" / part / kind).mkdir(parents=True)
            for number in range(count):
                image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
                write_png(image, str(tmp_path / "data" / part / kind / f"{number}.png"))
    monkeypatch.setattr(robustness, "SEEDS", (0,))
    words = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    robustness.main([*words, "--quick", "--noises", "random"])
    assert "batch-constant" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    found = robustness.measure([tmp_path / "runs" / "random" / "static-0"], "random", (1,), 6)
    assert found.sources["ASR(SE), folded"] == ("random/static-0/checkpoints/last.ckpt",)
    assert replace(found, data="").images == 6
