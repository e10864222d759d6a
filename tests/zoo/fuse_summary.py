"""The results of the fuse sweep as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.zoo.measure import FLOAT64_TOLERANCE, VISIBLE

PAGE = Path(__file__).parent / "results" / "FUSE.md"
Line = dict[str, Any]
_HEAD = """# Fused: what `fold(fuse=True)` merges in timm's models

Written by `python -m tests.zoo.fuse_sweep` from `fuse.jsonl` beside it. Every architecture of timm that contains blocks
which re-parameterize themselves (up to 60 million parameters), and every one that contains LayerScale as a module (of
any size; beyond 150 million parameters *shortened*: with four of their blocks, or one of every kind in each stage). All
weights, BatchNorm parameters and LayerScales random, statistics calibrated and jittered. Errors: largest difference
over the largest value of the output, float64, allowed 1e-10. *timm*: BatchNorms that
`timm.utils.reparameterize_model` leaves.
"""


def write_summary(lines: dict[str, Line], subjects: dict[str, Line]) -> None:
    """Write results/FUSE.md."""
    done = [line for line in lines.values() if "failure" not in line]
    failed = [line for line in lines.values() if "failure" in line]
    blocks = [line for line in done if line["blocks"]]
    scales = [line for line in done if line["layer_scales"]]
    parts = [
        _HEAD,
        _counts(lines, subjects, done),
        *_promises(done),
        "\n## Re-parameterizable blocks\n",
        *_block_table(blocks),
        "\n## LayerScale\n",
        *_scale_table(scales),
        *(f"\nFailed: `{line['name']}`: {line['failure']}" for line in failed),
    ]
    PAGE.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _counts(lines: dict[str, Line], subjects: dict[str, Line], done: list[Line]) -> str:
    versions = {tuple(sorted(line["versions"].items())) for line in lines.values()}
    told = "; ".join(", ".join(f"{name} {version}" for name, version in pairs) for pairs in sorted(versions))
    return f"{len(done)} of {len(subjects)} architectures measured ({told})."


def _promises(done: list[Line]) -> list[str]:
    """How many keep each promise, and who does not."""
    promises = {
        "float64 error <= 1e-10": lambda x: x["error64"] <= FLOAT64_TOLERANCE,
        "the image and the numbers merged are seen": lambda x: (
            min(x["image_dependence"], x["control"]) > VISIBLE * FLOAT64_TOLERANCE
        ),
        "a second call changes nothing": lambda x: x["again_same"] and not x["again_folded"],
        "float64 stays float64": lambda x: x["float64_kept"],
        "bfloat16 stays bfloat16": lambda x: x.get("bfloat16_kept", False),
        "bfloat16 is the float64 fold rounded once": lambda x: not x.get("bfloat16_rounded_otherwise", True),
        "no BatchNorm left": lambda x: not x["batchnorms_left"],
        "no LayerScale module left": lambda x: not x["layer_scales_left"],
    }
    rows = ["\n| promise | keep it | do not |", "|---|---|---|"]
    for name, holds in promises.items():
        broken = [f"`{line['name']}`" for line in done if not holds(line)]
        rows.append(f"| {name} | {len(done) - len(broken)} | {', '.join(broken) or 'none'} |")
    worst = max((line["error64"] for line in done), default=0.0)
    not_run = [f"\n`{line['name']}` does not run in bfloat16 on this device: {line['bfloat16_not_run']}"
               for line in done if "bfloat16_not_run" in line]  # fmt: skip
    return [*rows, f"\nLargest float64 error: {worst:.1e}.", *not_run]


def _block_table(lines: list[Line]) -> list[str]:
    rows = [
        "| architecture | BatchNorms | left by timm | left by us | our error | timm in float64, timm a second time |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        theirs = line.get("timm_left", line.get("timm", ""))
        wide = f"{line['timm_error64']:.1e}" if "timm_error64" in line else line.get("timm_float64", "")
        again = f"; {line['timm_again']}" if "timm_again" in line else ""
        row = (f"`{line['name']}`", line["batchnorms"], theirs, line["batchnorms_left"])
        rows.append("| " + " | ".join(map(str, row)) + f" | {line['error64']:.1e} | {wide}{again} |")
    return [*rows, *_reasons(lines)]


def _scale_table(lines: list[Line]) -> list[str]:
    rows = ["| architecture | LayerScales | left | BatchNorms | left | error |", "|---|---|---|---|---|---|"]
    for line in lines:
        row = [line[key] for key in ("layer_scales", "layer_scales_left", "batchnorms", "batchnorms_left")]
        whole = line.get("shortened_from")
        note = f" (shortened from {whole['layer_scales']} LayerScales)" if whole else ""
        rows.append(f"| `{line['name']}`{note} | " + " | ".join(map(str, row)) + f" | {line['error64']:.1e} |")
    return [*rows, *_reasons(lines)]


def _reasons(lines: list[Line]) -> list[str]:
    """What stays, by reason, with one architecture as the example."""
    found: dict[str, list[str]] = {}
    for line in lines:
        for reason in line["why_left"]:
            found.setdefault(general(reason), []).append(line["name"])
    listed = [f"- {reason} ({len(set(names))} architectures, such as `{names[0]}`)" for reason, names in found.items()]
    return ["\nWhat stays, and why:\n", *listed] if listed else []


def general(reason: str) -> str:
    """A reason without the paths in it, so that like ones count together."""
    words = [("..." if "." in word.strip("'\",;:") and not word.endswith(".") else word) for word in reason.split()]
    return " ".join(words)
