"""The page: a template filled with one report; everything it needs is inside it."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from stripefold.html_report.pack import Arrays, pack, packed_layers, packed_trajectory
from stripefold.html_report.words import describe, tiles

if TYPE_CHECKING:
    from stripefold.stripe.report import StripeReport
    from stripefold.stripe.trajectory import Trajectory


def render_page(report: StripeReport, *, trajectory: Trajectory | None = None, title: str | None = None) -> str:
    """The page as HTML.

    Args:
        report: What was observed.
        trajectory: The same over training.
        title: Its heading; the model's name where not given.
    """
    import jinja2

    arrays = Arrays()
    layers = packed_layers(report, arrays)
    drawn = {"layers": layers, "trajectory": packed_trajectory(trajectory, arrays)}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_text("page.html.jinja")).render(
        title=title or f"Stripes of {report.model or 'a model'}",
        sentence=describe(report),
        tiles=tiles(report, trajectory),
        report=report,
        layers=layers,
        has_classes=any(layer["class_share"] is not None for layer in layers),
        flags=sorted({layer["flag"] for layer in layers if layer["flag"]}),
        over_training=drawn["trajectory"] is not None,
        # Unsafe characters cannot end the element that the text stands in.
        meta=_safe_json(drawn),
        arrays=arrays.packed(),
        plotly=pack(_plotly().encode()) if layers else "",
        style=_text("page.css.jinja"),
        script=_text("page.js.jinja"),
    )


def _safe_json(content: Any) -> str:
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _text(name: str) -> str:
    return (files("stripefold.html_report") / name).read_text(encoding="utf-8")
