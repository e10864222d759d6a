"""A stripe report as rows and as text of at most 100 columns."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stripefold.stripe.layer import LayerStripes
    from stripefold.stripe.report import StripeReport

WIDTH = 100
_NUMBERS = 43  # the columns behind gate and kind, with their spaces
_LONGEST_KIND = 18
_MOST_LISTED = 8
_FLAGS = {
    "constant": "constant: one number for all images and channels, 0/0 counted as 1",
    "one image": "one image: nothing can vary, so the index is 1 by itself",
}


COLUMNS = (
    "gate",
    "kind",
    "depth",
    "channels",
    "branches",
    "images",
    "stripe_index",
    "flag",
    "mean",
    "between_std",
    "within_std_mean",
    "within_std_max",
    "within_over_mean",
    "class_share",
)


def summary(layer: LayerStripes) -> dict[str, Any]:
    """The numbers of one gate, a row of the CSV table."""
    return {
        "gate": layer.name,
        "kind": layer.kind,
        "depth": layer.depth,
        "channels": layer.channels,
        "branches": layer.split,
        "images": layer.images,
        "stripe_index": layer.stripe_index,
        "flag": layer.index_flag,
        "mean": float(layer.mean.mean()),
        "between_std": layer.between_variance**0.5,
        "within_std_mean": float(layer.within_std.mean()),
        "within_std_max": float(layer.within_std.max()),
        "within_over_mean": layer.within_over_mean,
        "class_share": layer.class_share,
    }


def as_text(report: StripeReport) -> str:
    """The table, with what the flags mean and what was not covered below it."""
    lines = [_headline(report)]
    if report.layers:
        classes = any(layer.class_share is not None for layer in report.layers)
        widths = _widths(report)
        rows = (_row(layer, widths, classes) for layer in report.layers)
        lines += ["", _header(widths, classes), *rows, "", *_footer(report)]
    lines += _section("not channel gates", _grouped(report))
    lines += _section("gates that no batch reached", list(report.unrecorded))
    lines += _section("layers that the example did not run", _unrun(report))
    return "\n".join(lines)


def _headline(report: StripeReport) -> str:
    if not report.layers:
        return f"{report.model} has no channel attention that depends on the image"
    gates = f"{len(report.layers)} channel gate" + ("s" if len(report.layers) > 1 else "")
    return f"stripes of {report.model}: {gates} over {report.images} images"


def _widths(report: StripeReport) -> tuple[int, int]:
    kind = min(_LONGEST_KIND, max(len(_kind(layer)) for layer in report.layers))
    longest = max(4, max(len(_name(layer)) for layer in report.layers))
    return min(WIDTH - _NUMBERS - 6 - kind - 1, longest), max(4, kind)


def _name(layer: LayerStripes) -> str:
    return layer.name or "(the model)"


def _kind(layer: LayerStripes) -> str:
    return layer.kind if layer.split == 1 else f"{layer.kind} /{layer.split}"


def _header(widths: tuple[int, int], classes: bool) -> str:
    labels = f"{'gate':<{widths[0]}} {'kind':<{widths[1]}}"
    numbers = f" {'C':>5} {'index':>6}  {'std':>8} {'max':>8} {'std/|v|':>7}"
    return labels + numbers + (f" {'class':>5}" if classes else "")


def _row(layer: LayerStripes, widths: tuple[int, int], classes: bool) -> str:
    ratio, share = layer.within_over_mean, layer.class_share
    kind = _kind(layer)
    kind = kind if len(kind) <= widths[1] else kind[: widths[1] - 3] + "..."
    text = (
        f"{_cut(_name(layer), widths[0]):<{widths[0]}} {kind:<{widths[1]}} {layer.channels:>5} "
        f"{layer.stripe_index:>6.3f}{'*' if layer.index_flag else ' '} {_short(float(layer.within_std.mean()))} "
        f"{_short(float(layer.within_std.max()))} {'-' if ratio is None else f'{ratio:.3f}':>7}"
    )
    return text + (f" {'-' if share is None else f'{share:.0%}':>5}" if classes else "")


def _short(value: float) -> str:
    return f"{value:>8.4f}" if value == 0 or value >= 1e-3 else f"{value:>8.1e}"


def _cut(text: str, width: int) -> str:
    """The end of a path tells more than its start."""
    return text if len(text) <= width else "..." + text[3 - width :]


def _footer(report: StripeReport) -> list[str]:
    lines = [
        "index: between-channel variance / total variance of the scale v; 1: every image gets the same vector",
        "std, max: standard deviation of a channel over the images, mean and largest over the channels",
        "std/|v|: that mean over the mean of |v|; small means nearly constant, whatever the index says",
    ]
    if any(layer.class_share is not None for layer in report.layers):
        lines.append("class: share of the variance over the images that the class explains")
    if any(layer.split > 1 for layer in report.layers):
        lines.append("/K behind a kind: the gate weighs K branches, which are summed up")
    flags = dict.fromkeys(layer.index_flag for layer in report.layers if layer.index_flag)
    return lines + [f"* {_FLAGS[flag]}" for flag in flags]


def _grouped(report: StripeReport) -> list[str]:
    """Products that are no gates, those of one kind together."""
    counts = Counter(other.why for other in report.others)
    lines = []
    for why, count in counts.items():
        first = next(other for other in report.others if other.why == why)
        more = f" and {count - 1} more" if count > 1 else ""
        shapes = f", product {first.shape}, factor {first.factor}" if first.shape else ""
        lines.append(f"{first.name or '(the model)'}{more}{shapes}: {why}")
    return lines


def _unrun(report: StripeReport) -> list[str]:
    if not report.uncalled:
        return []
    advice = "gates on their path are not seen: give example=[...], an input for each way in which the model is used"
    return [*report.uncalled, advice] if len(report.uncalled) < _MOST_LISTED else [*report.uncalled]


def _section(title: str, rows: list[str]) -> list[str]:
    if not rows:
        return []
    shown = [line for row in rows[:_MOST_LISTED] for line in _wrapped(row)]
    more = [f"  ... and {len(rows) - _MOST_LISTED} more"] if len(rows) > _MOST_LISTED else []
    return ["", f"{title}:", *shown, *more]


def _wrapped(row: str) -> list[str]:
    lines, line = [], "  "
    for word in row.split(" "):
        if len(line) + len(word) + 1 > WIDTH and line.strip():
            lines.append(line.rstrip())
            line = "    "
        line += word + " "
    return [*lines, line.rstrip()]
