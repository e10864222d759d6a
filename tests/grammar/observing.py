"""``observe`` and ``bake`` against what the network's own source says: ``tap`` marks every factor."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

import stripefold as sf
from tests.grammar.check import Subject, attempt, loaded_from
from tests.grammar.compare import outputs
from tests.grammar.network import Loaded

_CLOSE = 1e-6


def check_observe(subject: Subject) -> None:
    """Every gate has its layer with the right mean, or a row that says why not; nothing else has a layer."""
    with loaded_from(subject.network) as loaded:
        data = _data(loaded)
        good, report = attempt(subject, "observe", loaded, lambda: sf.observe(loaded.net, data))
    if not good or "lazy" in subject.network.tags:
        return
    means = tapped(subject, data)
    gates = {name for name in means if name.startswith("gate")}
    owners = {layer.name: _owner(layer.mean, means) for layer in report.layers}
    false = [name for name, owner in owners.items() if owner is not None and owner not in gates]
    missing = gates - set(owners.values())
    rows = len(report.others) + len(report.unrecorded) + sum(owner is None for owner in owners.values())
    counts = {"done": len(report.layers), "left": len(report.others)}
    if false:
        subject.note("observe", "wrong", f"{false[0]} is no gate ({owners[false[0]]})", **counts)
    elif len(missing) > rows:
        subject.note("observe", "wrong", f"{sorted(missing)} disappear without a row", **counts)
    else:
        unknown = [name for name, owner in owners.items() if owner is None]
        subject.note("observe", "right", f"unmarked: {unknown}" if unknown else "", **counts)


def check_bake(subject: Subject) -> None:
    """The baked network computes what the network computes with those of its factors held at their means."""
    with loaded_from(subject.network) as loaded:
        data = _data(loaded)
        good, made = attempt(subject, "bake", loaded, lambda: sf.bake(loaded.net, data, recalibrate=False), draws=True)
        if not good or "lazy" in subject.network.tags:
            return
        baked, report = made
        means = tapped(subject, data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layers = {layer.name: layer.mean for layer in sf.observe(loaded.net, data).layers}
        held = {site.name: _owner(layers[site.name], means) for site in report.baked}
        counts = {"done": len(report.folded), "left": len(report.sites) - len(report.folded)}
        if None in held.values():
            unknown = [name for name, owner in held.items() if owner is None]
            subject.note("bake", "right", f"not compared, unmarked: {unknown}", **counts)
            return
        with loaded_from(subject.network) as fresh:
            fresh.module.tap.held = {owner: means[owner] for owner in held.values() if owner is not None}
            truth = outputs(fresh.net, fresh.calls)
        subject.compare("bake", baked, truth, loaded, **counts)


def tapped(subject: Subject, data: list[Tensor]) -> dict[str, Tensor]:
    """Mean over the images of every marked factor, flat, in float64, from a run of the plain network."""
    with loaded_from(subject.network) as fresh, torch.no_grad():
        fresh.module.tap.records = {}
        for x in data:
            torch.manual_seed(5)
            fresh.net(x.clone())
        records: dict[str, list[Tensor]] = fresh.module.tap.records
    return {name: torch.cat([v.double().flatten(1) for v in found]).mean(0) for name, found in records.items()}


def _owner(mean: Tensor, means: dict[str, Tensor]) -> str | None:
    """The marked factor with this mean."""
    flat = mean.double().flatten()
    for name, own in means.items():
        if own.shape == flat.shape and float((own - flat).abs().max()) <= _CLOSE * float(own.abs().max()):
            return name
    return None


def _data(loaded: Loaded) -> list[Any]:
    return [loaded.calls[0].x.clone(), loaded.calls[1].x.clone()]
