"""Rendered text: single lines, and scenes with many lines, for the networks that read and find text.

Fonts are Debian's (``apt-get install fonts-dejavu fonts-liberation fonts-freefont-ttf fonts-noto-cjk``); whatever of
them is there is used, and pictures differ with the fonts. Everything else follows from the seed.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FONT_FOLDERS = (Path("/usr/share/fonts/truetype"), Path("/usr/share/fonts/opentype"))
LATIN = ("DejaVu", "Liberation", "Free", "NotoSans-", "NotoSerif-")
CHINESE = ("NotoSansCJK-Regular", "NotoSerifCJK-Regular")
COMMON = (
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后"
    "小么心多天而能好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长"
)
HINT = "apt-get install fonts-dejavu fonts-liberation fonts-freefont-ttf fonts-noto-cjk"


@dataclass(frozen=True)
class Scene:
    """A picture, RGB of bytes (H, W, 3), and the boxes (n, 4) of its lines: left, top, right, bottom."""

    pixels: np.ndarray
    boxes: np.ndarray


def fonts(names: tuple[str, ...]) -> list[Path]:
    """Font files whose names begin so, in order."""
    found = [path for folder in FONT_FOLDERS for path in folder.rglob("*.tt?") if path.name.startswith(names)]
    kept = [path for path in found if not any(word in path.name for word in ("Symbol", "Math", "Condensed"))]
    return sorted(kept, key=lambda path: path.name)


class Writer:
    """Draws text with random fonts, words and colours.

    Args:
        seed: of everything.
        chinese: share of the lines in Chinese, where such a font is there.
    """

    def __init__(self, seed: int, *, chinese: float = 0.3) -> None:
        self._rng = np.random.default_rng(seed)
        self._latin, self._chinese = fonts(LATIN), fonts(CHINESE)
        if not self._latin:
            raise SystemExit(f"no fonts to draw with: {HINT}")
        self._share = chinese if self._chinese else 0.0

    def words(self) -> tuple[str, Path]:
        """A line of text, and the font that has its characters."""
        rng = self._rng
        if rng.random() < self._share:
            return "".join(rng.choice(list(COMMON), rng.integers(4, 11))), Path(rng.choice(self._chinese))
        letters = list(string.ascii_lowercase * 3 + string.ascii_uppercase + string.digits)
        words = ["".join(rng.choice(letters, rng.integers(2, 8))) for _ in range(rng.integers(1, 4))]
        return " ".join(words), Path(rng.choice(self._latin))

    def line(self, height: int = 48, padding: int = 6) -> tuple[Image.Image, str]:
        """One line as a picture of this height, tilted a little, and its text."""
        text, font = self.words()
        face = ImageFont.truetype(str(font), height - 2 * padding - 4)
        left, top, right, bottom = face.getbbox(text)
        picture, ink = self._paper(right - left + 2 * padding, height)
        layer = Image.new("L", picture.size, 0)
        place = (padding - left, (height - (bottom - top)) // 2 - top)
        ImageDraw.Draw(layer).text(place, text, fill=255, font=face)
        layer = layer.rotate(float(self._rng.uniform(-2, 2)), Image.Resampling.BILINEAR)
        picture.paste(ink, mask=layer)
        return self._worn(picture), text

    def scene(self, size: int = 480, lines: int = 8) -> Scene:
        """A square picture with up to that many lines that do not touch."""
        picture, ink = self._paper(size, size)
        draw, boxes = ImageDraw.Draw(picture), []
        for _ in range(4 * lines):
            text, font = self.words()
            face = ImageFont.truetype(str(font), int(self._rng.integers(14, 40)))
            left, top, right, bottom = face.getbbox(text)
            x, y = (int(self._rng.integers(4, max(5, size - span - 4))) for span in (right - left, bottom - top))
            box = (x, y, x + right - left, y + bottom - top)
            if box[2] >= size - 2 or box[3] >= size - 2 or any(_touch(box, other, 12) for other in boxes):
                continue
            draw.text((x - left, y - top), text, fill=ink, font=face)
            boxes.append(box)
            if len(boxes) == lines:
                break
        return Scene(np.asarray(self._worn(picture)), np.asarray(boxes, float))

    def _paper(self, width: int, height: int) -> tuple[Image.Image, tuple[int, int, int]]:
        """A background of two colours that run into each other, and an ink that stands out from it."""
        rng = self._rng
        base = rng.integers(0, 256, 3)
        dark = base.mean() < 128
        ramp = np.linspace(0, 1, width)[None, :, None] * rng.integers(-40, 41, 3)
        pixels = np.clip(base + ramp + np.zeros((height, 1, 1)), 0, 255).astype(np.uint8)
        ink = tuple(int(value) for value in (rng.integers(190, 256, 3) if dark else rng.integers(0, 60, 3)))
        return Image.fromarray(pixels), ink  # type: ignore[return-value]

    def _worn(self, picture: Image.Image) -> Image.Image:
        rng = self._rng
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.2))))
        pixels = np.asarray(picture, float) + rng.normal(0, rng.uniform(0, 14), (*picture.size[::-1], 3))
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _touch(first: tuple[int, ...], second: tuple[int, ...], gap: int) -> bool:
    apart = first[2] + gap < second[0] or second[2] + gap < first[0]
    return not (apart or first[3] + gap < second[1] or second[3] + gap < first[1])


def prepared(picture: np.ndarray) -> np.ndarray:
    """(3, H, W) as these networks take it: blue first, from -1 to 1."""
    return ((picture[:, :, ::-1].astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)


def fitted_line(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """A line in a fixed frame: as high as that, cut off on the right or padded with zeros."""
    wide = min(width, max(1, round(picture.width * height / picture.height)))
    pixels = prepared(np.asarray(picture.resize((wide, height), Image.Resampling.BILINEAR)))
    frame = np.zeros((3, height, width), np.float32)
    frame[:, :, :wide] = pixels
    return frame
