"""Robustness: how networks that were trained alike keep their score when images or layers are disturbed.

What: ``measure_robustness(["runs/bare", "runs/asr"])`` measures the clean score and the score under every kind of
disturbance at every severity: noise in the image, common corruptions, noise inside the network. Every network meets
the very same noise; attached and folded are compared on the way.
Paper: the study of robustness of ASR (Huang et al. 2024) and of its forerunner IEBN (Liang et al. 2020), whose noise
enters BatchNorm; Hendrycks and Dietterich 2019 for common corruptions. docs/guides/robustness.md says what is theirs.
Why here: it compares what training runs left, so it stands beside training and reads its runs, data and measures.

The names are lazy: importing the package does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stripefold_lab.robustness.corruptions import corrupt
    from stripefold_lab.robustness.inside import noise_inside
    from stripefold_lab.robustness.kinds import KINDS
    from stripefold_lab.robustness.measure import measure_robustness
    from stripefold_lab.robustness.report import RobustnessReport
    from stripefold_lab.robustness.write import write_robustness

_HOMES = {
    "KINDS": "kinds",
    "RobustnessReport": "report",
    "corrupt": "corruptions",
    "measure_robustness": "measure",
    "noise_inside": "inside",
    "write_robustness": "write",
}

__all__ = ["KINDS", "RobustnessReport", "corrupt", "measure_robustness", "noise_inside", "write_robustness"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
