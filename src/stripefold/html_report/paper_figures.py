"""Pictures as a paper prints them: PDF and SVG, its column's width, a serif font of 8 points, no pixels but images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from stripefold.atomic import atomic_path
from stripefold.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Width = Literal["column", "text", "lncs"]
WIDTHS: dict[str, float] = {"column": 3.25, "text": 6.75, "lncs": 4.8}
"""Inches: one column of two, both of them, and the one of Springer's proceedings."""
FORMATS = ("pdf", "svg")
POINTS = 8
# STIX comes with matplotlib and looks like Times. Type 42: text that can be searched and edited; a fixed salt: the same
# picture is the same file.
_STYLE: Any = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": POINTS,
    "axes.linewidth": 0.6,
    "lines.linewidth": 0.9,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "stripefold",
}
_UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


@contextmanager
def paper_style() -> Iterator[None]:
    """Matplotlib's settings for a paper inside of the block; the caller's afterwards."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def write_paper(draw: Callable[[], Figure], stem: Path, width: Width = "column") -> list[Path]:
    """Draw a picture for a paper and write it as PDF and as SVG.

    Args:
        draw: Makes the figure, of any width; its height keeps its proportion down to four fifths of itself.
        stem: The files' path without a suffix.
        width: ``column``, ``text`` or ``lncs``.

    Returns:
        The files.

    Raises:
        ConfigError: There is no such width.
        OSError: A file cannot be written.
    """
    check_width(width)
    files = [stem.with_name(f"{stem.name}.{form}") for form in FORMATS]
    with paper_style():
        figure = draw()
        old, height = figure.get_size_inches()
        # Letters do not shrink with the width, so lines of text need more of the height than pictures do.
        figure.set_size_inches(WIDTHS[width], height * min(1.0, max(0.8, WIDTHS[width] / old)))
        for form, file in zip(FORMATS, files, strict=True):
            with atomic_path(file) as temporary:
                figure.savefig(temporary, format=form, metadata=_UNDATED[form])
    return files


def check_width(width: str) -> None:
    """Refuse a width that is none.

    Raises:
        ConfigError: Names those there are.
    """
    if width not in get_args(Width):
        raise ConfigError(f"width is {width!r}; choose one of {', '.join(get_args(Width))}")
