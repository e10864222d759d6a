"""How long folding takes, and how much memory it needs on top of the model."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold_lab.bench.report import Report
from stripefold_lab.bench.timing import Candidate, Settings, compare


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

    def held() -> list[Tensor]:
        return _tensors(fresh["model"])

    folding = Candidate(name="fold_", prepare=prepare, run=lambda: sf.fold_(fresh["model"], check=False), held=held)
    report = compare(title, [folding], settings, date=date)
    # Folding writes into the model's own tensors: they are followed too, and are not what it allocates.
    storages = [tensor.untyped_storage() for tensor in _tensors(attached)]
    model_bytes = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    rows = tuple(
        row if row.peak_bytes is None else replace(row, peak_bytes=row.peak_bytes - model_bytes) for row in report.rows
    )
    largest = max(parameter.numel() * parameter.element_size() for parameter in attached.parameters())
    sizes = {"model_bytes": model_bytes, "largest_tensor_bytes": largest, "written_bytes": _written_bytes(attached)}
    return replace(report, rows=rows, settings={**report.settings, **sizes})


def _written_bytes(attached: nn.Module) -> int:
    """The size of what folding writes over in place."""
    model = copy.deepcopy(attached)
    tensors = _tensors(model)
    sf.fold_(model, check=False)
    changed = (new for new, old in zip(tensors, _tensors(attached), strict=True) if not torch.equal(new, old))
    return sum(tensor.nbytes for tensor in changed)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
