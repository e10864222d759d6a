"""A small canvas for SVG drawings whose colours follow the reader's light or dark scheme."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
.ground{fill:#f8f9fb;stroke:#d5dae3}.text{fill:#1f2733}.soft{fill:#5a6675}.line{stroke:#5a6675;fill:none}
.plain{fill:#e3e8f4;stroke:#7485b5}.gate{fill:#fbe3cd;stroke:#d0752a}.done{fill:#d9efdf;stroke:#3f8f5b}
.none{fill:none;stroke:#9aa4b2;stroke-dasharray:5 4}.head{fill:#5a6675}
@media (prefers-color-scheme:dark){.ground{fill:#171b22;stroke:#343b47}.text{fill:#e6eaf0}.soft{fill:#a3adbb}
.line{stroke:#a3adbb}.plain{fill:#2a3450;stroke:#8598cc}.gate{fill:#4a2f18;stroke:#e0924f}
.done{fill:#1d3a28;stroke:#61b481}.none{stroke:#66707e}.head{fill:#a3adbb}}
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
"""
# From dark to light, even in lightness, so that it reads without colour vision.
RAMP = ("440154", "482173", "433e85", "38598c", "2d708e", "25858e")
RAMP += ("1e9b8a", "2ab07f", "52c569", "86d549", "c2df23", "fde725")


class Canvas:
    """Shapes that are collected and written as one SVG.

    Args:
        width: In user units.
        height: In user units.
        title: Read aloud in the place of the picture.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.shapes: list[str] = []
        self.rect(1, 1, width - 2, height - 2, "ground", corner=14)

    def rect(self, x: float, y: float, width: float, height: float, kind: str, corner: int = 8) -> None:
        """Add a rectangle with rounded corners."""
        self.shapes.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{corner}" stroke-width="1.5"/>'
        )

    def note(self, x: float, y: float, words: str, size: int = 15) -> None:
        """Add a line of softer text that begins at (x, y)."""
        self.text(x, y, words, size=size, kind="soft", at="start")

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 17,
        kind: str = "text",
        bold: bool = False,
        at: str = "middle",
    ) -> None:
        """Add one line of text; ``at`` is its anchor."""
        weight = ' font-weight="600"' if bold else ""
        self.shapes.append(
            f'<text class="{kind}" x="{x}" y="{y}" font-size="{size}" text-anchor="{at}"{weight}>{escape(words)}</text>'
        )

    def box(self, x: float, y: float, width: float, words: str | Sequence[str], kind: str = "plain") -> None:
        """Add a box of a layer, centred at (x, y), with one line of text or two."""
        lines = [words] if isinstance(words, str) else list(words)
        height = 22 + 20 * len(lines)
        self.rect(x - width / 2, y - height / 2, width, height, kind)
        for index, line in enumerate(lines):
            self.text(x, y + 6 + 20 * (index - (len(lines) - 1) / 2), line)

    def sign(self, x: float, y: float, words: str) -> None:
        """Add a circle with an operator."""
        self.shapes.append(f'<circle class="ground" cx="{x}" cy="{y}" r="15" stroke-width="1.5"/>')
        self.text(x, y + 7, words, size=20)

    def arrow(self, *points: tuple[float, float]) -> None:
        """Add a line through points that ends in an arrow head."""
        (x0, y0), (x1, y1) = points[-2:]
        length = max(abs(x1 - x0) + abs(y1 - y0), 1e-9)
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        path = " ".join(f"{x},{y}" for x, y in (*points[:-1], (x1 - 7 * dx, y1 - 7 * dy)))
        self.shapes.append(f'<polyline class="line" points="{path}" stroke-width="2"/>')
        left, right = (x1 - 10 * dx - 5 * dy, y1 - 10 * dy + 5 * dx), (x1 - 10 * dx + 5 * dy, y1 - 10 * dy - 5 * dx)
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in ((x1, y1), left, right))
        self.shapes.append(f'<polygon class="head" points="{corners}"/>')

    def heat(self, x: float, y: float, cell: tuple[float, float], rows: Sequence[str]) -> None:
        """Add a heat map: a row per image, a column per channel, levels as hexadecimal digits."""
        width, height = cell
        runs: dict[int, list[str]] = {}
        for index, row in enumerate(rows):
            start = 0
            for end in range(1, len(row) + 1):
                if end == len(row) or row[end] != row[start]:
                    left, top = x + start * width, y + index * height
                    runs.setdefault(int(row[start], 16), []).append(
                        f"M{left:g} {top:g}h{(end - start) * width:g}v{height:g}H{left:g}z"
                    )
                    start = end
        for level, parts in sorted(runs.items()):
            self.shapes.append(f'<path fill="#{RAMP[level]}" shape-rendering="crispEdges" d="{"".join(parts)}"/>')

    def svg(self) -> str:
        """The drawing as SVG source."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img">'
        lines = [head, f"<title>{escape(self.title)}</title>", f"<style>{STYLE}</style>", *self.shapes, "</svg>"]
        return "\n".join(lines) + "\n"
