"""The structure of a baked model, for its file: what became of each gate, and a new model made to match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stripefold.baking.apply import apply_
from stripefold.baking.graph_modules import discover_probed_, drop_probes_
from stripefold.baking.report import BakeReport
from stripefold.baking.sites import plan_bake
from stripefold.documents import DocumentError
from stripefold.errors import BakeError
from stripefold.folding.weight_files import BAKE, BakedGates
from stripefold.modules.example import Example
from stripefold.records import record

KEY = BAKE
"""under which a file's metadata holds the structure"""


def structure(report: BakeReport) -> dict[str, list[str]]:
    """Outcome -> gates: all that a file has to remember beside the weights.

    Args:
        report: of the bake.

    Raises:
        BakeError: the model has trainable gates, and is saved as an attached one.
    """
    if report.to == "asr":
        raise BakeError("the gates of to='asr' are still to be trained: fold the model, then save it")
    names: dict[str, list[str]] = {"folded": [], "multiply": [], "dynamic": []}
    for site in report.sites:
        names["multiply" if site.outcome == "constant" else site.outcome].append(site.name)
    return names


def rebuild_(model: nn.Module, gates: Mapping[str, Any], example: Example) -> nn.Module:
    """Give a model with its attention the structure of a baked one, in place; load the baked weights afterwards.

    Args:
        model: built as the one that was baked; its weights do not matter.
        gates: what ``structure`` gave.
        example: an input; the same list of them where baking was given one.

    Returns:
        The model; another object only where the model itself was a site of ours.

    Raises:
        BakeError: the model has other gates, or ``gates`` is damaged.
    """
    try:
        held = record(BakedGates, gates, KEY)
    except DocumentError as error:
        raise BakeError(f"the structure of the baked model is damaged: {error}") from error
    discovery, _ = discover_probed_(model, example)
    multiplied = set(held.multiply)
    names = {*held.folded, *multiplied}
    known = {gate.name: gate for gate in discovery.gates}
    if set(known) != names | set(held.dynamic):
        raise BakeError(
            f"the file was baked from a model with {len(names) + len(held.dynamic)} gates, this one has "
            f"{len(known)}, or others: build it as the model that was baked, with its attention"
        )
    ones = {name: torch.ones(known[name].channels, dtype=torch.float64) for name in known if name in names}
    sites = plan_bake(model, discovery, list(ones), constants=ones)
    # A constant that was negative may have kept a gate from where ones would fold.
    sites = [replace(site, how="multiply", targets=()) if site.name in multiplied else site for site in sites]
    made, _ = apply_(model, sites, ones)
    drop_probes_(made)
    return made
