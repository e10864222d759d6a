"""A page of HTML from the shared template: everything it needs is inside it, and nothing leaves it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from stripefold.html_report.pack import pack

if TYPE_CHECKING:
    from markupsafe import Markup

Tile = tuple[str, str, str]
"""A figure at the head of a page: what is shown large, what it is, and a remark."""
_NAME, _SEAM = re.compile(r"\S*[A-Za-z_]{2}\S*"), re.compile(r"([._/])(?=\w)")  # which a number is not


def fill(page: str, *, drawn: Mapping[str, Any] | None, **content: Any) -> str:
    """The page as HTML.

    Args:
        page: The template's name; ``PAGE.html.jinja`` extends ``base.html.jinja``, and ``PAGE.js.jinja`` draws.
        drawn: What its script draws, as plain values; None: there is nothing to draw.
        **content: What the templates name.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["breakable"] = breakable
    return environment.get_template(f"{page}.html.jinja").render(
        # Unsafe characters cannot end the element that the text stands in.
        meta=_safe_json(drawn),
        plotly=pack(_plotly().encode()) if drawn is not None else "",
        style=_text("common.css.jinja"),
        script=_text("common.js.jinja") + _text(f"{page}.js.jinja"),
        **{"arrays": "", **content},
    )


def breakable(text: str) -> Markup:
    """Text whose long names may go on in the next line behind a dot, a slash or an underscore, and nowhere else.

    >>> str(breakable("layer1.0.se <b> 99.50"))
    'layer1.<wbr>0.<wbr>se &lt;b&gt; 99.50'
    """
    from markupsafe import Markup, escape

    return Markup(_NAME.sub(lambda name: _SEAM.sub(r"\1<wbr>", name[0]), str(escape(text))))


def _safe_json(content: Any) -> str:
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _text(name: str) -> str:
    return (files("stripefold.html_report") / name).read_text(encoding="utf-8")
