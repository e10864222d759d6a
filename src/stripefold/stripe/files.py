"""Stripe reports on disk: strict JSON, one safetensors file, CSV tables; nothing is unpickled."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stripefold.atomic import atomic_path, write_text
from stripefold.errors import ObserveError
from stripefold.stripe.discover import NotAGate
from stripefold.stripe.layer import LayerStripes
from stripefold.stripe.table import COLUMNS, summary

if TYPE_CHECKING:
    from stripefold.stripe.report import StripeReport

_FORMAT = "stripefold stripes 1"
_TENSORS = {
    "mean": torch.float64,
    "m2": torch.float64,
    "sample": torch.float32,
    "class_means": torch.float64,
    "class_counts": torch.int64,
    "descriptor_mean": torch.float64,
}


def to_dict(report: StripeReport) -> dict[str, Any]:
    """See ``StripeReport.to_dict``."""
    return _described(report, lambda name, tensor: tensor.tolist())


def from_dict(cls: type[StripeReport], content: Mapping[str, Any]) -> StripeReport:
    """See ``StripeReport.from_dict``."""
    return _restored(cls, content, lambda key, value: torch.tensor(value, dtype=_TENSORS[key]))


def save(report: StripeReport, path: str | os.PathLike[str]) -> Path:
    """See ``StripeReport.save``."""
    target = Path(path)
    if target.suffix == ".json":
        write_text(target, json.dumps(to_dict(report), allow_nan=False))
    elif target.suffix == ".safetensors":
        tensors: dict[str, Tensor] = {}

        def keep(name: str, tensor: Tensor) -> str:
            tensors[name] = tensor.contiguous().clone()
            return name

        description = json.dumps(_described(report, keep), allow_nan=False)
        with atomic_path(target) as temporary:
            save_file(tensors, temporary, metadata={"stripes": description})
    else:
        raise ObserveError(
            f"cannot save a stripe report as {target.name!r}: the name must end in .json or .safetensors"
        )
    return target


def load(cls: type[StripeReport], path: str | os.PathLike[str]) -> StripeReport:
    """See ``StripeReport.load``."""
    target = Path(path)
    try:
        if target.suffix == ".safetensors":
            with safe_open(target, "pt") as file:
                content = json.loads((file.metadata() or {}).get("stripes", "null"))
                return _restored(cls, content, lambda key, value: file.get_tensor(value))
        return from_dict(cls, json.loads(target.read_text(encoding="utf-8")))
    except (OSError, SafetensorError, ValueError, ObserveError) as error:
        raise ObserveError(f"{target} is no stripe report that can be read: {error}") from error


def to_csv(report: StripeReport, path: str | os.PathLike[str], *, by_channel: bool) -> Path:
    """See ``StripeReport.to_csv``."""
    rows = list(_channel_rows(report)) if by_channel else [summary(layer) for layer in report.layers]
    text = io.StringIO(newline="")
    names = ["gate", "channel", "mean", "std"] if by_channel else COLUMNS
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
    return Path(path)


def _channel_rows(report: StripeReport) -> Iterator[dict[str, Any]]:
    for layer in report.layers:
        for channel, (mean, std) in enumerate(zip(layer.mean.tolist(), layer.within_std.tolist(), strict=True)):
            yield {"gate": layer.name, "channel": channel, "mean": mean, "std": std}


def _described(report: StripeReport, put: Callable[[str, Tensor], Any]) -> dict[str, Any]:
    layers = []
    for index, layer in enumerate(report.layers):
        row = {field.name: getattr(layer, field.name) for field in fields(layer)}
        for key in _TENSORS:
            if row[key] is not None:
                row[key] = put(f"{index}.{key}", row[key])
        numbers = {key: _finite(value) for key, value in summary(layer).items()}
        layers.append({**row, "summary": numbers})
    return {
        "format": _FORMAT,
        "model": report.model,
        "images": report.images,
        "versions": dict(report.versions),
        "layers": layers,
        "others": [asdict(other) for other in report.others],
        "uncalled": list(report.uncalled),
        "unrecorded": list(report.unrecorded),
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _restored(cls: type[StripeReport], content: Any, take: Callable[[str, Any], Tensor]) -> StripeReport:
    if not isinstance(content, Mapping) or content.get("format") != _FORMAT:
        raise ObserveError(f"it does not say that it is one ({_FORMAT!r})")
    try:
        return cls(
            layers=tuple(_restored_layer(row, take) for row in content["layers"]),
            others=tuple(
                NotAGate(name=o["name"], shape=tuple(o["shape"]), factor=tuple(o["factor"]), why=o["why"])
                for o in content["others"]
            ),
            uncalled=tuple(content["uncalled"]),
            unrecorded=tuple(content["unrecorded"]),
            images=content["images"],
            model=content["model"],
            versions=dict(content["versions"]),
        )
    except (KeyError, TypeError) as error:
        raise ObserveError(f"it is incomplete ({type(error).__name__}: {error})") from error


def _restored_layer(row: Mapping[str, Any], take: Callable[[str, Any], Tensor]) -> LayerStripes:
    values = {field.name: row[field.name] for field in fields(LayerStripes)}
    for key in _TENSORS:
        if values[key] is not None:
            values[key] = take(key, values[key])
    values["sample"] = values["sample"].reshape(-1, values["channels"])  # JSON cannot tell the width of no rows
    return LayerStripes(**values)
