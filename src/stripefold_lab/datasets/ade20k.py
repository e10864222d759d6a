"""Scenes in the layout of ADE20K's scene parsing benchmark: ``images/`` and ``annotations/`` side by side.

Source: Zhou et al. 2017; the layout is that of ADEChallengeData2016.
"""

from __future__ import annotations

from pathlib import Path

from stripefold.errors import DataError
from stripefold_lab.datasets.files import need_folder, read_lines
from stripefold_lab.datasets.voc import ClassMaps, class_names

FORM = "an ADE20K-style data set"
HALVES = (("training", "train"), ("validation", "val"))


def open_ade20k(root: Path) -> tuple[ClassMaps, ClassMaps]:
    """Training and validation scenes; pixels of number 0 ("other") do not count, as in the benchmark.

    Args:
        root: Holds ``images/training``, ``annotations/training`` (PNG, a byte per pixel) and the same with
            ``validation``; the class names stand in ``objectInfo150.txt``, or one a line in ``labels.txt``.

    Raises:
        DataError: If something is missing.
    """
    names = class_names(root, root / "labels.txt") or _object_info(root / "objectInfo150.txt")
    train, val = (ClassMaps(names, _files(root, half), zero_counts=False) for half in HALVES)
    return train, val


def _object_info(path: Path) -> tuple[str, ...]:
    """The benchmark's own table: tab-separated, a heading, the names in the last column."""
    if not path.exists():
        raise DataError(f"{path.parent} holds neither labels.txt nor {path.name}; name the classes, one a line, there")
    return tuple(line.split("\t")[-1].strip() for line in read_lines(path)[1:])


def _files(root: Path, half: tuple[str, ...]) -> tuple[tuple[Path, Path], ...]:
    pictures = need_folder(root, *(f"images/{name}" for name in half), form=FORM)
    maps = need_folder(root, *(f"annotations/{name}" for name in half), form=FORM)
    found = sorted(path for path in pictures.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise DataError(f"{pictures} holds no images (.jpg, .jpeg, .png)")
    missing = [path for path in found if not (maps / f"{path.stem}.png").exists()]
    if missing:
        raise DataError(f"{maps} has no {missing[0].stem}.png for {missing[0].name} ({len(missing)} of {len(found)})")
    return tuple((path, maps / f"{path.stem}.png") for path in found)
