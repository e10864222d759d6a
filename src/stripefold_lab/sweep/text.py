"""The table of a sweep as Markdown and as LaTeX, to be pasted into a page or a paper."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stripefold.atomic import write_text
from stripefold.errors import TrainingError
from stripefold_lab.sweep.table import caption, columns, shown_rows

if TYPE_CHECKING:
    from stripefold_lab.sweep.result import SweepResult

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$", "|": r"$|$",
}  # fmt: skip
_SIGNED = re.compile(r"(?<![\w.])([+-])(\d+(?:\.\d+)?)")
_MARKDOWN = re.compile(r"([\\|*_`<>\[\]])")


def as_markdown(result: SweepResult) -> str:
    """A table with its title above and what its numbers are below.

    Args:
        result: What the sweep found.
    """
    head = columns(result)
    lines = [head, ("---",) * len(head), *shown_rows(result)]
    cells = [[cell if cell == "---" else _MARKDOWN.sub(r"\\\1", cell) for cell in line] for line in lines]
    table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    title = _MARKDOWN.sub(r"\\\1", result.sweep.title)
    below = _MARKDOWN.sub(r"\\\1", caption(result))
    return f"**{title}**\n\n{table}\n\n{below}\n"


def as_latex(result: SweepResult) -> str:
    """A floating table with the lines of the package booktabs.

    Args:
        result: What the sweep found.
    """
    head = columns(result)
    rows = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in (head, *shown_rows(result))]
    return "\n".join([
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(result.sweep.title)}. {_latex(caption(result))}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', result.sweep.name).strip('-')}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ])  # fmt: skip


def _latex(text: str) -> str:
    """Every character as it is read; numbers with a sign in mathematics, where - is a minus."""
    pieces, last = [], 0
    for found in _SIGNED.finditer(text):
        pieces += [_escaped(text[last : found.start()]), f"${found[0]}$"]
        last = found.end()
    return "".join([*pieces, _escaped(text[last:])])


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


FORMS: dict[str, tuple[str, Callable[[SweepResult], str]]] = {
    "markdown": ("md", as_markdown),
    "latex": ("tex", as_latex),
}
"""Name of a form -> its files' suffix, and what writes it"""


def write_texts(result: SweepResult) -> list[Path]:
    """Write ``results.md`` and ``results.tex``.

    Args:
        result: What the sweep found.

    Raises:
        TrainingError: If a file cannot be written.
    """
    files = [result.folder / f"results.{suffix}" for suffix, _ in FORMS.values()]
    for file, (_, form) in zip(files, FORMS.values(), strict=True):
        try:
            write_text(file, form(result))
        except OSError as error:
            raise TrainingError(f"cannot write {file}: {error.strerror or error}; the same command goes on") from error
    return files
