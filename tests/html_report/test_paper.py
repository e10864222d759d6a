"""Pictures for a paper: its width, its fonts, twice the same file, and nothing of the caller's settings moved."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest

import stripefold as sf
from stripefold.errors import ConfigError
from stripefold.html_report.paper_figures import WIDTHS, write_paper
from stripefold.html_report.pictures import draw_overview, draw_stripes, draw_trajectory
from stripefold_lab.cli import main
from tests.html_report.reports import make_report, make_trajectory

DRAWINGS: dict[str, Callable[[], Any]] = {
    "stripes": lambda: draw_stripes(make_report().layers[0]),
    "overview": lambda: draw_overview(make_report()),
    "trajectory": lambda: draw_trajectory(make_trajectory()),
}


def inches(svg: Path) -> float:
    return float(re.search(r'<svg [^>]*width="([\d.]+)pt"', svg.read_text(encoding="utf-8"))[1]) / 72  # type: ignore[index]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", DRAWINGS)
def test_width_font_and_form(name: str, width: Any, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    pdf, svg = write_paper(DRAWINGS[name], tmp_path / "picture.1", width)
    assert (pdf.name, svg.name) == ("picture.1.pdf", "picture.1.svg")
    assert inches(svg) == pytest.approx(WIDTHS[width], abs=0.01)
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"STIX" in pdf.read_bytes()
    assert b"DejaVu" not in pdf.read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    first = write_paper(DRAWINGS["overview"], tmp_path / "first")
    second = write_paper(DRAWINGS["overview"], tmp_path / "second")
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_another_width_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="width is 'page'; choose one of column, text, lncs"):
        write_paper(DRAWINGS["overview"], tmp_path / "picture", "page")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="width is 'page'"):
        sf.write_report(make_report(), tmp_path / "report", paper="page")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_report_has_them_where_asked_for_and_loses_them_where_not(tmp_path: Path) -> None:
    sf.write_report(make_report(), tmp_path, trajectory=make_trajectory(), paper="lncs")
    pictures = tmp_path / "pictures"
    stems = {path.stem for path in pictures.glob("*.png")}
    for form in ("pdf", "svg"):
        assert {path.stem for path in pictures.glob(f"*.{form}")} == stems
    assert inches(pictures / "overview.svg") == pytest.approx(4.8, abs=0.01)
    sf.write_report(make_report(), tmp_path, trajectory=make_trajectory())
    assert not [*pictures.glob("*.pdf"), *pictures.glob("*.svg")]
    assert {path.stem for path in pictures.glob("*.png")} == stems


def test_the_command_says_what_is_missing(capsys: Any) -> None:
    words = ["observe", "resnet8", "--data", "noise"]
    assert main([*words, "--paper", "column"]) != 0
    assert "say where with --out" in capsys.readouterr().err
    assert main([*words, "--paper", "wide", "--out", "x"]) != 0
    assert "width is 'wide'" in capsys.readouterr().err
