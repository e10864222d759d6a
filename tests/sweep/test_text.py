"""The table as Markdown and as LaTeX: the numbers of the printed one, and no character that breaks the form."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stripefold.errors import TrainingError
from stripefold_lab.cli import main
from stripefold_lab.sweep import Sweep, plan_sweep
from stripefold_lab.sweep.runner import write_result
from stripefold_lab.sweep.table import shown_rows
from stripefold_lab.sweep.text import as_latex, as_markdown, write_texts
from tests.sweep.conftest import Room
from tests.sweep.test_folder import finish

ODD = r"50 % of a_b | $x^2$ & {c} ~ \d * <e> #1"


@pytest.fixture
def done(sweep: Sweep, tmp_path: Path) -> Room:
    """Two settings of two seeds, the second with a label of every character that means something somewhere."""
    odd = dataclasses.replace(sweep, title=f"Title, {ODD}", grid={}, settings={ODD: {"repeats": 2}})
    room = Room(odd, tmp_path / "tiny")
    for place, score in enumerate((0.5, 0.6, 0.52, 0.7)):
        finish(room, place, score)
    return room


def test_markdown_has_the_printed_cells(done: Room) -> None:
    result = plan_sweep(done.sweep, done.paths.root)
    text = as_markdown(result)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert {len(row) for row in cells} == {4}
    plain = [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in cells]
    assert plain[2:] == [list(row) for row in shown_rows(result)]
    assert "paired by seed" in text


def test_latex_has_a_row_per_setting_and_escapes_everything(done: Room) -> None:
    result = plan_sweep(done.sweep, done.paths.root)
    text = as_latex(result)
    assert text.count(r" \\") == 1 + len(result.rows)
    assert r"52.00 $\pm$ 2.83" not in text
    assert r"51.00 $\pm$ 1.41" in text
    difference = shown_rows(result)[1][3]
    signed = re.sub(r"[+-]\d+\.\d+", lambda found: f"${found[0]}$", difference)
    assert signed in text
    assert (
        r"50 \% of a\_b $|$ \$x\textasciicircum{}2\$ \& \{c\} \textasciitilde{} \textbackslash{}d * $<$e$>$ \#1" in text
    )
    body = text.partition(r"\begin{tabular}")[2]
    for row in body.splitlines():
        assert len(re.findall(r"(?<!\\)&", row)) in (0, 3)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_compiles(done: Room, tmp_path: Path) -> None:
    table = as_latex(plan_sweep(done.sweep, done.paths.root))
    page = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}" + table + "\\end{document}"
    (tmp_path / "page.tex").write_text(page)
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"], cwd=tmp_path, check=True)


def test_a_finished_sweep_has_all_files(done: Room) -> None:
    result = write_result(plan_sweep(done.sweep, done.paths.root))
    names = {file.name for file in result.files}
    assert {f"results.{form}" for form in ("csv", "parquet", "md", "tex", "png", "pdf", "svg")} <= names
    assert all(file.stat().st_size > 100 for file in result.files)


@pytest.mark.parametrize(("form", "sign"), [("markdown", "| ---"), ("latex", r"\toprule"), ("text", "after the last")])
def test_the_command_prints_each_form(
    form: str, sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from stripefold_lab.sweep import load_sweep

    monkeypatch.chdir(tmp_path)
    room = Room(load_sweep("delta", base="digits", seeds=2), tmp_path / "sweeps" / "delta")
    for place in range(4):
        finish(room, place, 0.8 + 0.01 * place)
    assert main(["sweep", "delta", "--base", "digits", "--seeds", "2", "--table", "--format", form]) == 0
    printed = capsys.readouterr().out
    assert sign in printed
    assert all((mark in printed) == (mark == sign) for mark in ("| ---", r"\toprule"))


def test_another_form_is_refused(capsys: Any) -> None:
    assert main(["sweep", "delta", "--table", "--format", "html"]) != 0
    assert "--format is 'html'; choose one of text, markdown, latex" in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_cannot_be_written(done: Room, tmp_path: Path) -> None:
    result = dataclasses.replace(plan_sweep(done.sweep, done.paths.root), folder=tmp_path / "missing")
    with pytest.raises(TrainingError, match=r"cannot write .*results\.md"):
        write_texts(result)
