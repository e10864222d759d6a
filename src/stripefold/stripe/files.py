"""Stripe reports on disk: strict JSON, one safetensors file, CSV tables; nothing is unpickled."""

from __future__ import annotations

import csv
import io
import json
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
from stripefold.documents import DocumentError, finite, parse_json, read_json, shown
from stripefold.errors import ObserveError, one_line
from stripefold.inputs import check_regular
from stripefold.records import checked, record
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
    return _restored(cls, content, lambda key, value: tensor_of(value, _TENSORS[key], key))


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
    check_regular(target, ObserveError)
    try:
        if target.suffix == ".safetensors":
            with safe_open(target, "pt") as file:
                content = parse_json((file.metadata() or {}).get("stripes", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return _restored(cls, content, lambda key, value: tensor_of(_found(tensors, value), _TENSORS[key], key))
        return from_dict(cls, read_json(target))
    except (OSError, SafetensorError, ValueError, ObserveError) as error:
        raise ObserveError(f"{target} is no stripe report that can be read: {one_line(error)}") from error


def _found(tensors: Mapping[str, Tensor], name: Any) -> Tensor:
    if not isinstance(name, str) or name not in tensors:
        raise DocumentError(f"there is no tensor {shown(name)}")
    return tensors[name]


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
        layers.append({**row, "summary": finite(summary(layer))})
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


def _restored(cls: type[StripeReport], content: Any, take: Callable[[str, Any], Tensor]) -> StripeReport:
    if not isinstance(content, Mapping) or content.get("format") != _FORMAT:
        raise ObserveError(f"it does not say that it is one ({_FORMAT!r})")
    values = {key: value for key, value in content.items() if key != "format"}
    try:
        rows = checked(list[dict[str, Any]], values.get("layers"), "layers")
        return record(cls, {**values, "layers": [_restored_layer(row, take) for row in rows]}, "the report")
    except DocumentError as error:
        raise ObserveError(f"it is damaged: {error}") from error


def _restored_layer(row: Mapping[str, Any], take: Callable[[str, Any], Tensor]) -> LayerStripes:
    values = {key: value for key, value in row.items() if key != "summary"}
    for key in _TENSORS:
        if values.get(key) is not None:
            values[key] = take(key, values[key])
    if isinstance(values.get("sample"), Tensor) and not values["sample"].numel():
        values["sample"] = values["sample"].new_zeros(0, checked(int, values.get("channels"), "channels"))
    layer = record(LayerStripes, values, f"the gate {shown(row.get('name'))}")
    _check_layer(layer)
    return layer


def _check_layer(layer: LayerStripes) -> None:
    """What its numbers are computed from must fit together."""
    classes = None if layer.class_counts is None else layer.class_counts.shape
    fits = (
        layer.mean.shape == layer.m2.shape == (layer.channels,) == layer.sample.shape[1:]
        and layer.sample.dim() == 2
        and (layer.class_means is None) == (classes is None)
        and (layer.class_means is None or layer.class_means.shape == (*(classes or ()), layer.channels))
        and (classes is None or len(classes) == 1)
        and (layer.descriptor_mean is None or layer.descriptor_mean.dim() == 1)
    )
    counts = min(layer.images - 1, layer.channels - 1, layer.split - 1, layer.keep)
    dtype = getattr(torch, layer.dtype, None)
    if not fits or counts < 0 or not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise DocumentError(f"the numbers of the gate {shown(layer.name)} do not fit together")
    if bool((layer.m2 < 0).any()):
        raise DocumentError(f"the gate {shown(layer.name)} has a variance below 0")


def tensor_of(value: Any, dtype: torch.dtype, where: str) -> Tensor:
    """Numbers of a file as a tensor.

    Args:
        value: Nested lists of equal lengths, or a tensor.
        dtype: Which a tensor must have and lists get.
        where: What it is called in messages.

    Raises:
        DocumentError: It is neither, or holds what is no finite number.
    """
    numbers = value if isinstance(value, Tensor) else checked(list[Any], value, where)
    try:
        found = numbers if isinstance(numbers, Tensor) else torch.tensor(numbers, dtype=dtype)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise DocumentError(f"{where} is no list of numbers") from error
    if found.dtype != dtype or not bool(found.isfinite().all()):
        raise DocumentError(f"{where} holds what is no finite number of type {dtype}")
    return found
