"""Results on disk: one JSON line per model, the versions they were measured with, and the exclusions."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
EXCLUSIONS = Path(__file__).parent / "exclusions.json"


def exclusions(library: str) -> dict[str, str]:
    """Name -> the reason why no promise is made for a model."""
    reasons: dict[str, dict[str, str]] = json.loads(EXCLUSIONS.read_text(encoding="utf-8"))
    return reasons.get(library, {})


class Results:
    """The lines of one library; a later line for a model replaces the earlier.

    Args:
        library: "timm", "torchvision" or "transformers".
        fresh: forget what is on disk.
    """

    def __init__(self, library: str, *, fresh: bool = False) -> None:
        self.library = library
        self.versions = {name: importlib.metadata.version(name) for name in ("stripefold", "torch", library)}
        self._path = FOLDER / f"{library}.jsonl"
        FOLDER.mkdir(exist_ok=True)
        self.lines: dict[str, dict[str, Any]] = {}
        if fresh:
            self._path.unlink(missing_ok=True)
        elif self._path.exists():
            for text in self._path.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                self.lines[line["name"]] = line

    def add(self, line: dict[str, Any]) -> None:
        """Keep a line, in memory and on disk."""
        reason = exclusions(self.library).get(line["name"])
        excluded = {"exclusion": reason} if reason and not line["passed"] else {}
        line = {**_rounded(line), **excluded, "versions": self.versions}
        self.lines[line["name"]] = line
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def passed(self) -> set[str]:
        """Names that passed with the versions installed now."""
        return {name for name, line in self.lines.items() if line["passed"] and line["versions"] == self.versions}

    def failures(self) -> list[dict[str, Any]]:
        """Lines of models that failed without being excluded."""
        return [line for line in self.lines.values() if not line["passed"] and "exclusion" not in line]

    def keep_only(self, names: Iterable[str]) -> None:
        """Drop lines of models that the library no longer has."""
        known = set(names)
        self.lines = {name: line for name, line in self.lines.items() if name in known}

    def settle(self, names: Iterable[str]) -> None:
        """Rewrite the file with one line per model, in the order of the names."""
        ordered = [json.dumps(self.lines[name]) for name in names if name in self.lines]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in ordered), encoding="utf-8")
        temporary.replace(self._path)


def _rounded(line: dict[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in line.items()}
