"""How long folding takes, and how much memory it needs on top of the model."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import nn

import stripefold as sf
from stripefold.bench.report import Report
from stripefold.bench.timing import Candidate, Settings, compare


def measure_folding(title: str, attached: nn.Module, settings: Settings, *, date: str = "") -> Report:
    """Time `fold_` on a fresh copy of an attached model in every call.

    Args:
        title: What is measured, in words.
        attached: A model with gates; left as it is.
        settings: How it is measured. The peak counts what folding allocates, not the model.
        date: Day of the measurement.
    """
    fresh: dict[str, Any] = {}

    def prepare() -> None:
        fresh.clear()
        fresh["model"] = copy.deepcopy(attached)

    folding = Candidate(name="fold_", prepare=prepare, run=lambda: sf.fold_(fresh["model"], check=False))
    report = compare(title, [folding], settings, date=date)
    largest = max(parameter.numel() * parameter.element_size() for parameter in attached.parameters())
    total = sum(parameter.numel() * parameter.element_size() for parameter in attached.parameters())
    return replace(report, settings={**report.settings, "model_bytes": total, "largest_tensor_bytes": largest})
