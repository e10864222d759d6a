"""The drawings of the pages: `python -m docs_site.drawings` writes `docs/assets/*.svg`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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
    canvas = Canvas(1000, 598, "attach, train, fold: a gate trains on a BatchNorm and is folded into it")
    steps = [
        (160, "your model", "a PyTorch model", ["BatchNorm"], "plain"),
        (490, "while it trains", "a gate scales the norm's parameters", ["v · BatchNorm"], "gate"),
        (840, "what you deploy", "same class, same keys, same speed", ["BatchNorm′"], "done"),
    ]
    for x, title, words, norm, kind in steps:
        canvas.text(x, 46, title, size=26, bold=True)
        canvas.text(x, 74, words, size=15, kind="soft")
        branch(canvas, x, 92, norm, kind)
    canvas.box(660, 140, 120, "psi (learned)", "gate")
    canvas.arrow((660, 161), (660, 202))
    canvas.box(660, 223, 92, "SE", "gate")
    canvas.arrow((614, 223), (570, 223))
    canvas.text(592, 212, "v", size=18)
    canvas.text(840, 346, "weight′ = v · weight", size=15)
    canvas.text(840, 368, "bias′ = v · bias", size=15)
    for x, verb in ((282, "attach"), (618, "fold")):
        canvas.text(x + 35, 32, verb, size=20, bold=True)
        canvas.arrow((x, 44), (x + 70, 44))
    stripes = json.loads(FILE.read_text(encoding="utf-8"))
    for left, gate in zip((60, 530), stripes["gates"], strict=True):
        canvas.heat(left, 440, (6.4, 3), gate["rows"])
        canvas.note(left, 557, f"gate of {gate['name']}: stripe index {gate['index']:.2f}")
    canvas.text(60, 402, "Why a constant can do: the scales of a trained SE network", size=19, bold=True, at="start")
    words = "one row per image, one column per channel; left: every image gets nearly the same scales; "
    canvas.note(60, 426, words + "right: the last gate answers more")
    canvas.note(60, 581, "ResNet-20 + SE, trained on handwritten digits, 32 test images", size=13)
    return canvas


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
    each.__name__: each for each in (overview, site, gate, trace, plan, icon, block, positions, chain)
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
