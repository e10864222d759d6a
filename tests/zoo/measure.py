"""How two outputs are compared, and what is promised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOAT64_TOLERANCE = 1e-10
NOISE_FACTOR, FLOAT32_FLOOR = 4.0, 1e-6
VISIBLE = 100.0
"""How many tolerances the output's dependence on the image, and the gates' effect, must at least be."""


class Unequal(AssertionError):
    """A figure is outside its tolerance, or a structure differs."""


def error(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Largest difference over largest value, the worst of all outputs; infinite where shapes differ."""
    if found.keys() != truth.keys() or not truth:
        return float("inf")
    return max(_relative(found[path].double(), truth[path].double()) for path in truth)


def _relative(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or bool(a.isnan().any()):
        return float("inf")
    difference = torch.where(a == b, 0.0, (a - b).abs())  # infinities are masks and must agree
    size = float(torch.where(b.isfinite(), b, 0.0).abs().max())
    return float(difference.max()) / size if size else float(difference.max())


def image_dependence(outputs: dict[str, Tensor]) -> float:
    """Standard deviation over the images relative to the output's size; the output that depends most counts."""
    found = [0.0]
    for tensor in outputs.values():
        if tensor.dim() > 1 and tensor.shape[0] > 1:
            finite = torch.where(tensor.isfinite(), tensor, 0.0).double()
            size = float(finite.square().mean().sqrt())
            found.append(float(finite.var(0).mean().sqrt()) / size if size else 0.0)
    return max(found)


def float32_tolerance(figures: dict[str, Any]) -> float:
    """What the folded model may differ from the truth, by how much the model before folding does."""
    return max(NOISE_FACTOR * float(figures["noise32"]), FLOAT32_FLOOR)


def judge(figures: dict[str, Any]) -> None:
    """Hold the figures against the numeric policy.

    Raises:
        Unequal: names every promise that is broken.
    """
    tolerance = float32_tolerance(figures)
    promises = {
        "NaN in the outputs": figures["nan"] == 0,
        "float64 error": figures["error64"] <= FLOAT64_TOLERANCE,
        "float32 error": figures["error32"] <= tolerance,
        "output does not depend on the image": figures["image_dependence"] >= VISIBLE * tolerance,
        "the bare backbone computes the same": figures["control"] >= VISIBLE * tolerance,
        "gates that never moved": figures["unmoved"] == 0,
    }
    broken = [name for name, holds in promises.items() if not holds]
    if broken:
        told = {key: float(f"{value:.3g}") for key, value in figures.items() if isinstance(value, (int, float))}
        raise Unequal(f"{', '.join(broken)}: {told}")
