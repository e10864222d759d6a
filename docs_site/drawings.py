"""The drawings of the pages: `python -m docs_site.drawings` writes `docs/assets/*.svg`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from docs_site.canvas import Canvas
from docs_site.guide_drawings import block, chain, positions
from docs_site.stripes import FILE

FOLDER = Path(__file__).parents[1] / "docs" / "assets"


def branch(canvas: Canvas, x: float, top: float, norm: Sequence[str], kind: str) -> None:
    """A residual block from top to bottom: convolution, norm, sum, and the way around them."""
    canvas.arrow((x, top), (x, top + 40))
    canvas.box(x, top + 62, 120, "convolution")
    canvas.arrow((x, top + 83), (x, top + 110))
    height = 22 + 20 * len(norm)
    canvas.box(x, top + 110 + height / 2, 160, norm, kind)
    end = top + 110 + height
    canvas.arrow((x, end), (x, end + 27))
    canvas.sign(x, end + 42, "+")
    canvas.arrow((x, top + 16), (x - 100, top + 16), (x - 100, end + 42), (x - 15, end + 42))
    canvas.arrow((x, end + 57), (x, end + 84))


def overview() -> Canvas:
    """Attach, train, fold; and the observation behind it."""
    canvas = Canvas(1000, 520, "attach, train, fold: a gate trains on a BatchNorm and is folded into it")
    steps = [
        (150, "your model", "a PyTorch model", ["BatchNorm"], "plain"),
        (470, "while it trains", "a gate scales the norm's parameters", ["v · BatchNorm"], "gate"),
        (850, "what you deploy", "same class, same keys, same speed", ["BatchNorm′"], "done"),
    ]
    for x, title, words, norm, kind in steps:
        canvas.text(x, 42, title, size=26, bold=True)
        canvas.text(x, 68, words, size=15, kind="soft")
        branch(canvas, x, 80, norm, kind)
    canvas.box(640, 128, 120, "psi (learned)", "gate")
    canvas.arrow((640, 149), (640, 190))
    canvas.box(640, 211, 92, "SE", "gate")
    canvas.arrow((594, 211), (550, 211))
    canvas.text(572, 200, "v", size=18)
    canvas.text(850, 334, "weight′ = v · weight", size=15)
    canvas.text(850, 354, "bias′ = v · bias", size=15)
    for x, verb in ((262, "attach"), (625, "fold")):
        canvas.text(x + 35, 28, verb, size=20, bold=True)
        canvas.arrow((x, 40), (x + 70, 40))
    canvas.text(50, 354, WHY, size=19, bold=True, at="start")
    canvas.note(50, 380, f"{SOURCE}; one row per image, one column per channel")
    for left, (gate, words) in zip((50, 532), observed(), strict=True):
        canvas.heat(left, 392, (6.5, 3), gate["rows"])
        canvas.note(left, 508, words)
    return canvas


def overview_narrow() -> Canvas:
    """The same for a telephone, from top to bottom."""
    canvas = Canvas(400, 744, "attach, train, fold: a gate trains on a BatchNorm and is folded into it")
    steps = [
        (20, "your model", "BatchNorm", "plain"),
        (142, "while it trains", "v · BatchNorm", "gate"),
        (330, "what you deploy", "BatchNorm′", "done"),
    ]
    for top, title, norm, kind in steps:
        canvas.text(20, top + 18, title, size=20, bold=True, at="start")
        canvas.arrow((14, top + 54), (44, top + 54))
        canvas.box(104, top + 54, 120, "convolution")
        canvas.arrow((164, top + 54), (200, top + 54))
        canvas.box(275, top + 54, 150, norm, kind)
        canvas.arrow((350, top + 54), (386, top + 54))
    canvas.box(104, 266, 120, "psi (learned)", "gate")
    canvas.arrow((164, 266), (229, 266))
    canvas.box(275, 266, 92, "SE", "gate")
    canvas.arrow((275, 245), (275, 217))
    canvas.text(290, 237, "v", size=18)
    for y, verb in ((106, "attach"), (294, "fold")):
        canvas.arrow((60, y), (60, y + 30))
        canvas.text(74, y + 21, verb, size=17, bold=True, at="start")
    canvas.text(200, 428, "weight′ = v · weight,  bias′ = v · bias", size=15)
    canvas.text(200, 448, "same class, same keys, same speed", size=15, kind="soft")
    for index, line in enumerate(WHY.split(": ")):
        canvas.text(20, 490 + 22 * index, line + (":" if index == 0 else ""), size=17, bold=True, at="start")
    canvas.note(20, 534, SOURCE, size=13)
    for top, (gate, words) in zip((544, 638), observed(), strict=True):
        canvas.heat(20, top, (5.6, 2), gate["rows"])
        canvas.note(20, top + 81, words, size=13)
    return canvas


WHY = "Why a constant can do: the scales of a trained SE network"
SOURCE = "ResNet-20 + SE on handwritten digits, 32 test images"


def observed() -> list[tuple[dict[str, Any], str]]:
    """Two gates of a trained network and what is to be seen in their stripes."""
    gates = json.loads(FILE.read_text(encoding="utf-8"))["gates"]
    seen = (
        "{name}: nearly the same for every image (index {index:.2f})",
        "{name}: answers to the image (index {index:.2f})",
    )
    return [(gate, words.format(**gate)) for gate, words in zip(gates, seen, strict=True)]


def site() -> Canvas:
    """Where the default puts a gate."""
    canvas = Canvas(820, 250, "a residual block; the site is the last normalisation of its branch")
    canvas.arrow((30, 150), (98, 150))
    for x, words in ((150, "conv1"), (270, "bn1"), (380, "relu"), (490, "conv2")):
        canvas.box(x, 150, 84, words)
    for x, end in ((192, 228), (312, 338), (422, 448), (532, 558)):
        canvas.arrow((x, 150), (end, 150))
    canvas.box(610, 150, 104, "bn2", "gate")
    canvas.arrow((662, 150), (697, 150))
    canvas.sign(712, 150, "+")
    canvas.arrow((727, 150), (790, 150))
    canvas.arrow((64, 150), (64, 56), (712, 56), (712, 135))
    canvas.text(380, 46, "identity", size=15, kind="soft")
    canvas.text(610, 200, "the site", bold=True)
    canvas.text(610, 224, "the last affine layer of the branch", size=15, kind="soft")
    return canvas


def gate() -> Canvas:
    """The dynamic and the static form of one attention."""
    canvas = Canvas(820, 380, "dynamic attention computes its input from the image; the static form learns it")
    forms = [(30, "dynamic: ordinary SE", "mean over x", "plain"), (210, "static: ASR", "psi (learned)", "gate")]
    for top, title, words, kind in forms:
        canvas.text(30, top + 8, title, bold=True, at="start")
        canvas.arrow((30, top + 110), (330, top + 110))
        canvas.text(48, top + 98, "x")
        canvas.box(400, top + 110, 140, "B: the layer")
        canvas.arrow((470, top + 110), (665, top + 110))
        canvas.sign(680, top + 110, "·")
        canvas.arrow((695, top + 110), (780, top + 110))
        canvas.text(765, top + 98, "y")
        canvas.box(300, top + 46, 150, words, kind)
        canvas.arrow((375, top + 46), (420, top + 46))
        canvas.box(500, top + 46, 160, "E: the attention", "gate")
        canvas.arrow((580, top + 46), (680, top + 46), (680, top + 95))
    canvas.text(632, 66, "v(x)")
    canvas.text(632, 246, "v")
    canvas.arrow((120, 140), (120, 76), (225, 76))
    canvas.note(30, 362, "v(x) changes with the image; v is one vector, so v · B(x) is again a layer like B")
    return canvas


def trace() -> Canvas:
    """Where a scale may go."""
    canvas = Canvas(820, 330, "the trace decides whether a scale may go backward, forward, or has to stay")
    rows = [
        (60, ["BatchNorm", "v", "conv"], "backward: the norm takes v", 0),
        (150, ["ReLU6", "v", "conv 1x1"], "forward: the next layer takes v", 2),
        (240, ["ReLU6", "v", "tanh"], "neither: v stays, with the reason", None),
    ]
    for y, words, meaning, taker in rows:
        canvas.arrow((20, y), (60, y))
        for index, word in enumerate(words):
            x = 120 + 145 * index
            kind = "gate" if index == 1 else "done" if index == taker else "plain"
            canvas.box(x, y, 110, "· v" if index == 1 else word, kind)
            canvas.arrow((x + 55, y), (x + 90, y))
        canvas.text(520, y + 6, meaning, size=16, at="start")
    words = "Every user of the value has to agree: one consumer that sees the unscaled value is enough to refuse."
    canvas.note(30, 306, words)
    return canvas


def plan() -> Canvas:
    """What fold does, in order."""
    canvas = Canvas(820, 190, "fold: copy, trace, plan, check, write, compare")
    steps = [
        ("copy", "yours stays"),
        ("trace", "one run"),
        ("plan", "who takes what"),
        ("check", "or refuse"),
        ("write", "one rounding"),
        ("compare", "with yours"),
    ]
    for index, (name, words) in enumerate(steps):
        x = 80 + 132 * index
        canvas.box(x, 80, 96, name, "done" if name in ("check", "compare") else "plain")
        canvas.text(x, 126, words, size=14, kind="soft")
        if index < len(steps) - 1:
            canvas.arrow((x + 48, 80), (x + 84, 80))
    words = "Nothing is written before everything is checked. A call that fails leaves the model as it was."
    canvas.note(30, 168, words)
    return canvas


def icon() -> Canvas:
    """The sign of the project: stripes."""
    canvas = Canvas(64, 64, "stripefold")
    canvas.shapes = [
        f'<rect x="{6 + 9 * index}" y="8" width="8" height="48" rx="2" fill="#{color}"/>'
        for index, color in enumerate(("fde725", "2ab07f", "86d549", "25858e", "52c569", "fde725"))
    ]
    return canvas


DRAWINGS: dict[str, Callable[[], Canvas]] = {
    each.__name__: each for each in (overview, overview_narrow, site, gate, trace, plan, icon, block, positions, chain)
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a drawing is stale")
    check = parser.parse_args(arguments).check
    stale = []
    for name, draw in DRAWINGS.items():
        path, source = FOLDER / f"{name}.svg", draw().svg()
        if not path.exists() or path.read_text(encoding="utf-8") != source:
            stale.append(path.name)
            if not check:
                path.write_text(source, encoding="utf-8")
    print("\n".join(stale) or "up to date")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
