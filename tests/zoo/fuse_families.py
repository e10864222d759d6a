"""``fold(fuse=True)`` on the smallest architecture of every family of timm: constants that are parameters of blocks.

PYTHONPATH=src python -m tests.zoo.fuse_families      # a few minutes; writes results/FUSE_FAMILIES.md

``fuse_sweep`` knows LayerScale by its class. Here everything counts that multiplies or adds one of the model's
parameters, whatever holds it: folded, or left with the reason.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import stripefold as sf
from stripefold.modules.foldable import FoldNote
from tests.zoo.fuse_check import batchnorms, first_prepared, outputs
from tests.zoo.fuse_summary import general
from tests.zoo.measure import FLOAT64_TOLERANCE, error
from tests.zoo.models_timm import names, subjects

PAGE = Path(__file__).parent / "results" / "FUSE_FAMILIES.md"
_HEAD = """# Fused: the smallest architecture of every family of timm

Written by `python -m tests.zoo.fuse_families` (timm {timm}, torch {torch}). Every family that has an architecture of up
to 60 million parameters. Scales and additions: products by, and sums with, a parameter of the model; *left* have their
reasons below. All weights random; error in float64, allowed 1e-10.

{count} families; largest error {worst:.1e}; {bad} above what is allowed.

| architecture | BatchNorms, left | scales folded | left | additions folded | left | error |
|---|---|---|---|---|---|---|
"""


def families() -> dict[str, str]:
    """Family -> its smallest architecture."""
    found: dict[str, str] = {}
    for name in names():
        found.setdefault(timm.models.model_entrypoint(name).__module__, name)
    return found


def check_family(name: str) -> dict[str, Any]:
    """What one architecture keeps of its constants and BatchNorms, and how exact the rest is.

    Raises:
        RuntimeError: it runs in none of its sizes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, example = first_prepared(subjects(name))
        plain, report = sf.fold(model, fuse=True, example=example, check=False, report=True)
        expected = outputs(model, example)
        return {
            "name": name,
            "batchnorms": len(batchnorms(model)),
            "batchnorms_left": len(batchnorms(plain)),
            "error64": error(outputs(plain, example), expected),
            "control": error(outputs(_neutral(model, report.folded), example), expected),
            **{kind: _notes(report.notes, kind) for kind in ("scale", "addition")},
        }


def _neutral(model: nn.Module, folded: Iterable[FoldNote]) -> nn.Module:
    """The control: the numbers of everything that was folded taken away must be seen."""
    bare = copy.deepcopy(model)
    parameters, modules = dict(bare.named_parameters()), dict(bare.named_modules())
    with torch.no_grad():
        for note in folded:
            held = [parameters[note.name]] if note.name in parameters else modules[note.name].parameters()
            for parameter in held:
                parameter.fill_(0.0 if note.kind.startswith("addition of ") else 1.0)
    return bare


def _notes(notes: Iterable[FoldNote], kind: str) -> dict[str, Any]:
    """What is folded and what is left, by holder; a module that is nothing but a LayerScale counts as a scale."""
    mine = [note for note in notes if note.kind.startswith(f"{kind} of ")]
    mine += [note for note in notes if kind == "scale" and note.kind.startswith(("LayerScale", "Scale"))]
    return {
        "folded": dict(Counter(note.kind.removeprefix(f"{kind} of ") for note in mine if note.folded)),
        "left": [(note.kind.removeprefix(f"{kind} of "), note.why) for note in mine if not note.folded],
    }


def page(lines: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    errors = [line["error64"] for line in lines]
    versions = {"timm": timm.__version__, "torch": torch.__version__.partition("+")[0]}
    bad = sum(value > FLOAT64_TOLERANCE for value in errors)
    rows = [_HEAD.format(**versions, count=len(lines), worst=max(errors), bad=bad).rstrip("\n")]
    for line in lines:
        cells = [f"`{line['name']}`", f"{line['batchnorms']}, {line['batchnorms_left']}"]
        for kind in ("scale", "addition"):
            left = Counter(holder for holder, _ in line[kind]["left"])
            cells += [_counted(line[kind]["folded"]), _counted(left)]
        rows.append(f"| {' | '.join(cells)} | {line['error64']:.1e} |")
    return "\n".join([*rows, "", *_reasons(lines)]) + "\n"


def _counted(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {holder}" for holder, count in found.items())


def _reasons(lines: list[dict[str, Any]]) -> list[str]:
    """What stays, by kind, holder and reason, with the architectures."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for line in lines:
        for kind in ("scale", "addition"):
            for holder, why in line[kind]["left"]:
                found.setdefault((kind, holder, general(why)), []).append(line["name"])
    return [
        f"- {kind} of {holder}: {why} ({', '.join(f'`{name}`' for name in dict.fromkeys(where))})"
        for (kind, holder, why), where in found.items()
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="a glob over names")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines, failed = [], []
    for name in families().values():
        if not fnmatchcase(name, options.only):
            continue
        try:
            lines.append(check_family(name))
            print(name, lines[-1]["error64"], flush=True)
        except Exception as failure:  # every failure is a finding
            failed.append(f"- failed: `{name}`: {type(failure).__name__}: {str(failure)[:300]}")
            print(failed[-1], flush=True)
    PAGE.write_text(page(lines) + "".join(f"{line}\n" for line in failed), encoding="utf-8")


if __name__ == "__main__":
    main()
