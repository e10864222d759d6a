"""Real stripes for the drawings: the scales of a trained SE network, image by image.

stripefold train --config digits --form dynamic --run-dir runs/stripes
stripefold observe runs/stripes --out runs/stripes/observed
python -m docs_site.stripes runs/stripes/observed/stripes.safetensors     # writes docs_site/stripes.json
python -m docs_site.drawings                                              # draws docs/assets/*.svg again
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import stripefold as sf

FILE = Path(__file__).with_name("stripes.json")
GATES = ("layer3.0.bn2.gates.0.attention", "layer3.2.bn2.gates.0.attention")
IMAGES, LEVELS = 32, 12


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="stripes.safetensors, written by stripefold observe")
    report = sf.StripeReport.load(parser.parse_args(arguments).report)
    gates = [gate_of(report, name) for name in GATES]
    FILE.write_text(json.dumps({"images": report.images, "gates": gates}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {FILE}")


def gate_of(report: sf.StripeReport, name: str) -> dict[str, object]:
    """One gate: its numbers, and a row of levels for each of some images at even distances."""
    layer = report.layer(name)
    kept = layer.sample[:: max(1, len(layer.sample) // IMAGES)][:IMAGES]
    low, high = float(kept.min()), float(kept.max())
    levels = ((kept - low) / (high - low) * LEVELS).long().clamp(max=LEVELS - 1)
    rows = ["".join(f"{level:x}" for level in row) for row in levels.tolist()]
    short, index = name.split(".gates")[0], round(layer.stripe_index, 3)
    return {"name": short, "index": index, "low": low, "high": high, "rows": rows}


if __name__ == "__main__":
    main()
