"""Drawings of single guides: branch blocks, gates over positions, chains."""

from __future__ import annotations

from docs_site.canvas import Canvas


def block() -> Canvas:
    """A branch block while it trains, and what it folds to."""
    canvas = Canvas(820, 300, "a RepVGG block: three branches while it trains, one convolution after folding")
    canvas.text(30, 40, "while it trains", bold=True, at="start")
    canvas.text(590, 40, "after fold", bold=True, at="start")
    canvas.arrow((30, 150), (110, 150))
    for y, layer in ((80, "conv 3x3"), (150, "conv 1x1"), (220, None)):
        if y != 150:
            canvas.arrow((80, 150), (80, y), (110 if layer else 260, y))
        if layer:
            canvas.box(165, y, 110, layer, "gate")
            canvas.arrow((220, y), (260, y))
        canvas.box(320, y, 120, "BatchNorm", "gate")
        ways = {80: [(452, 80), (452, 135)], 150: [(437, 150)], 220: [(452, 220), (452, 165)]}
        canvas.arrow((380, y), *ways[y])
    canvas.sign(452, 150, "+")
    canvas.arrow((467, 150), (520, 150))
    canvas.arrow((590, 150), (630, 150))
    canvas.box(690, 150, 120, "conv 3x3", "done")
    canvas.arrow((750, 150), (790, 150))
    canvas.note(30, 280, "Every branch is linear, so their sum is one kernel and one bias.")
    return canvas


def positions() -> Canvas:
    """Where a gate over positions folds."""
    canvas = Canvas(820, 340, "gates over positions fold where a linear layer reads or writes positions")
    rows = [
        (60, ["map", "· s", "flatten", "linear"], 3, "linear takes s on its input side"),
        (130, ["tokens", "linear", "· s", "tokens"], 1, "token mixing takes s on its output side"),
        (200, ["map", "· s", "mean", "linear"], 2, "a weighted mean takes s (fuse=True)"),
        (270, ["map", "conv", "· s", "map"], None, "no layer can hold s: refused"),
    ]
    for y, words, taker, meaning in rows:
        canvas.arrow((14, y), (34, y))
        for index, word in enumerate(words):
            x = 76 + 108 * index
            canvas.box(x, y, 84, word, "gate" if word == "· s" else "done" if index == taker else "plain")
            canvas.arrow((x + 42, y), (x + 66, y))
        canvas.note(476, y + 5, meaning)
    canvas.note(14, 326, "s: one number for each position. Green: the layer that takes it.")
    return canvas


def chain() -> Canvas:
    """One cell for all sites of a width."""
    canvas = Canvas(820, 220, "dia: one LSTM cell serves all sites of a width, and its state goes from site to site")
    for index, name in enumerate(("layer1.0.bn2", "layer1.1.bn2", "layer1.2.bn2")):
        x = 150 + 250 * index
        canvas.box(x, 150, 140, name)
        canvas.box(x, 60, 140, "the same cell", "gate")
        canvas.arrow((x, 81), (x, 129))
        canvas.text(x + 16, 112, "v")
        canvas.arrow((x + 70, 150), (x + 180 if index < 2 else x + 140, 150))
        if index < 2:
            canvas.arrow((x + 70, 60), (x + 180, 60))
            canvas.text(x + 125, 48, "state", size=15, kind="soft")
    canvas.arrow((30, 150), (80, 150))
    canvas.note(30, 204, "Every forward starts anew at the first site.")
    return canvas
