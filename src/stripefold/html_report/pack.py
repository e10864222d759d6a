"""What the page draws, small enough to be part of it: values as bytes, compressed, as text.

The page carries plotly's library too (4.8 MB as text, 2 MB compressed), and the whole is to stay below 6 MB. Values in
pictures are therefore rounded to 255 steps of their range, and where there are too many of them, images and epochs are
left out evenly; means, deviations and the table are exact to float32.
"""

from __future__ import annotations

import base64
import gzip
from typing import TYPE_CHECKING, Any

import torch

from stripefold.stripe.table import summary

if TYPE_CHECKING:
    from torch import Tensor

    from stripefold.stripe.layer import LayerStripes
    from stripefold.stripe.report import StripeReport
    from stripefold.stripe.trajectory import Trajectory

LAYER_BYTES = 1_900_000
"""Of all gates together: a mean and a deviation of four bytes per channel, and a byte per value of a stripe picture."""
EPOCH_BYTES = 600_000
"""Of the channel means over the epochs, likewise."""
MOST_IMAGES = 256
_STEPS = 255
_EXACT = 8


class Arrays:
    """Arrays one behind the other; each is named by where it starts and how many values it has."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._length = 0

    def exact(self, values: Tensor) -> list[int]:
        """Put values there as float32, little-endian."""
        return self._put(values.to(torch.float32).contiguous().numpy().astype("<f4").tobytes(), values.numel())

    def rounded(self, values: Tensor) -> dict[str, Any]:
        """Put values there as bytes: 0 is the lowest of them, 255 the highest."""
        low, high = (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)
        scaled = (values.double() - low) / ((high - low) or 1.0) * _STEPS
        data = scaled.round().to(torch.uint8).contiguous().numpy().tobytes()
        return {"at": self._put(data, values.numel()), "low": low, "high": high, "rows": len(values)}

    def packed(self) -> str:
        """Everything, compressed, as base64."""
        return pack(b"".join(self._parts))

    def _put(self, data: bytes, count: int) -> list[int]:
        self._parts.append(data)
        self._length += len(data)
        return [self._length - len(data), count]


def pack(data: bytes) -> str:
    """Bytes, gzip-compressed, as base64; the same bytes give the same text."""
    return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode("ascii")


def packed_layers(report: StripeReport, arrays: Arrays) -> list[dict[str, Any]]:
    """One entry per gate: the table's numbers, and where its arrays lie."""
    channels = sum(layer.channels for layer in report.layers)
    images = max(1, min(MOST_IMAGES, LAYER_BYTES // max(1, channels) - _EXACT))
    return [_packed_layer(layer, images, arrays) for layer in report.layers]


def packed_trajectory(trajectory: Trajectory | None, arrays: Arrays) -> dict[str, Any] | None:
    """The numbers of every gate over the epochs, and its channels' means, or None where there is nothing to draw."""
    if trajectory is None or not trajectory.epochs or not trajectory.gates:
        return None
    channels = sum(trajectory.channel_means(gate).shape[1] for gate in trajectory.gates)
    chosen = _evenly(len(trajectory.epochs), max(1, EPOCH_BYTES // channels))
    drawn = ("stripe_index", "within_std_mean", "first_difference")
    return {
        "epochs": trajectory.epochs,
        "drawn_epochs": [trajectory.epochs[place] for place in chosen],
        "gates": [
            {
                "name": gate,
                **{quantity: trajectory.series(gate, quantity) for quantity in drawn},
                "means": arrays.rounded(trajectory.channel_means(gate)[chosen]),
            }
            for gate in trajectory.gates
        ],
    }


def _packed_layer(layer: LayerStripes, images: int, arrays: Arrays) -> dict[str, Any]:
    sample = layer.sample[:images] if len(layer.sample) else layer.mean[None]
    return {
        **summary(layer),
        "sample": arrays.rounded(sample),
        "means": arrays.exact(layer.mean),
        "stds": arrays.exact(layer.within_std),
    }


def _evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, the last one among them."""
    step = -(-count // most)
    return list(range(count - 1, -1, -step))[::-1]
